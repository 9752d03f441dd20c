"""Drawings of training and evaluation: each a pure function from numbers to a figure with its text and its data.

    loss_and_rate("run-1", [10, 20], [2.3, 2.1], [0.1, 0.05]).svg

matplotlib is imported when the first is drawn.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from toughen.outcomes import interval
from toughen.report.blocks import Figure
from toughen.report.counts import ClassRow, common_confusions
from toughen.report.csv import csv_text
from toughen.report.formatting import label, percent
from toughen.report.page.figures import svg

Points = Sequence[tuple[float, float]]


def loss_and_rate(
    key: str, steps: Sequence[float], losses: Sequence[float], rates: Sequence[float], batch: Mapping[str, Points]
) -> Figure:
    """Training loss, accuracies on the training batches, and the learning rate over the optimiser steps."""
    title = "Loss, accuracy on training batches and learning rate"
    panels = 3 if batch else 2
    with svg.drawing((5.2, 1.45 * panels), panels=panels, sharex=True) as (figure, axes):
        axes[0].plot(steps, losses, color=svg.BLUE)
        axes[0].set_ylabel("loss")
        for number, (name, points) in enumerate(batch.items()):
            axes[1].plot(*_columns(points), label=label(name), **{**svg.series(number), "marker": None})
        if batch:
            axes[1].set_ylabel("accuracy, %")
            axes[1].legend()
        axes[-1].plot(steps, rates, color=svg.VERMILLION)
        axes[-1].set_ylabel("learning rate")
        axes[-1].set_xlabel("optimiser step")
        alt = f"The loss goes from {losses[0]:.3g} at step {steps[0]:g} to {losses[-1]:.3g} at step {steps[-1]:g}."
        rows = (
            (step, loss, rate, *(dict(points).get(step, "") for points in batch.values()))
            for step, loss, rate in zip(steps, losses, rates, strict=True)
        )
        return svg.line_figure(figure, key, title, alt, ("step", "loss", "learning rate", *batch), rows)


def validation(key: str, steps: Sequence[int], found: Sequence[Mapping[str, Mapping[str, float]]]) -> Figure:
    """Clean and robust validation accuracy of the weights and of each average, over the optimiser steps."""
    title = "Validation accuracy of the weights and their averages"
    names = list(dict.fromkeys(name for one in found for name in one))
    with svg.drawing((5.2, 2.6)) as (figure, axes):
        for number, name in enumerate(names):
            style = svg.series(number)
            for kind, dashes in (("clean_accuracy", "--"), ("robust_accuracy", "-")):
                points = [(step, 100 * one[name][kind]) for step, one in zip(steps, found, strict=True) if name in one]
                text = f"{label(name)}, {kind.removesuffix('_accuracy')}"
                axes.plot(*_columns(points), label=text, **{**style, "linestyle": dashes})
        svg.percent_axis(axes)
        axes.set_xlabel("optimiser step")
        svg.legend(axes)
        ends = ", ".join(
            f"{name} {percent(one['clean_accuracy'])} clean and {percent(one['robust_accuracy'])} robust"
            for name, one in found[-1].items()
        )
        alt = f"At step {steps[-1]}: {ends}. Clean accuracies are dashed, robust ones solid."
        rows = (
            (step, name, accuracies["clean_accuracy"], accuracies["robust_accuracy"])
            for step, one in zip(steps, found, strict=True)
            for name, accuracies in one.items()
        )
        return svg.line_figure(figure, key, title, alt, ("step", "weights", "clean", "robust"), rows)


def waterfall(key: str, n: int, left: Sequence[tuple[str, int]]) -> Figure:
    """What each attack of the cascade took: how many of n examples are not yet broken after it, clean images first."""
    title = "What each attack took"
    names = [label(name) for name, _ in left]
    with svg.drawing((5.2, 0.8 + 0.34 * len(left))) as (figure, axes):
        before = n
        for place, (_, count) in enumerate(left):
            share, lost = 100 * count / n, 100 * (before - count) / n
            axes.barh(place, share, color=svg.SKY if place == 0 else svg.BLUE, height=0.7)
            axes.barh(place, lost, left=share, color="none", edgecolor=svg.VERMILLION, hatch="////", height=0.7)
            text = f"{share:.1f}{f' (-{lost:.1f})' if lost else ''}"
            axes.text(100 * before / n + 1, place, text, va="center", fontsize=8.5)
            before = count
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 118)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("accuracy left, % (hatched: what the attack took)")
        alt = f"Of {n} images " + ", ".join(f"{percent(k / n)} are still right after {name}" for name, k in left) + "."
        return svg.line_figure(figure, key, title, alt, ("attack", "standing", "of"), ((a, k, n) for a, k in left))


def per_class(key: str, names: Sequence[str], rows: Sequence[ClassRow]) -> Figure:
    """Clean and robust accuracy by class, with 95 % intervals."""
    title = "Accuracy by class"
    places = np.arange(len(rows))
    with svg.drawing((5.2, 0.9 + 0.3 * len(rows))) as (figure, axes):
        for offset, colour, name, mark in ((-0.17, svg.SKY, "clean", "o"), (0.17, svg.BLUE, "robust", "s")):
            hits = [getattr(row, name) for row in rows]
            shares = np.array([100 * k / row.n for k, row in zip(hits, rows, strict=True)])
            bounds = np.array([interval(k, row.n) for k, row in zip(hits, rows, strict=True)]).T * 100
            reach = np.abs(np.stack([shares - bounds[0], bounds[1] - shares]))
            axes.errorbar(shares, places + offset, xerr=reach, fmt=mark, color=colour, label=name, capsize=2)
        axes.set_yticks(places, [label(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(-2, 102)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("accuracy, % (bars: 95 % intervals)")
        svg.legend(axes, "upper")
        order = sorted(range(len(rows)), key=lambda at: rows[at].robust / rows[at].n)
        (low, least), (high, most) = ((names[at], rows[at].robust / rows[at].n) for at in (order[0], order[-1]))
        alt = f"Least robust: {low} with {percent(least)}. Most robust: {high} with {percent(most)}."
        lines = ((name, *row) for name, row in zip(names, rows, strict=True))
        return svg.line_figure(figure, key, title, alt, ("class", "n", "clean", "robust"), lines)


def confusion(key: str, counts: np.ndarray, names: Sequence[str]) -> Figure:
    """The confusion matrix in the worst case: rows true classes, columns predictions, shares of the row."""
    title = "Confusion matrix of attacked images"
    size = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = size <= 20
    side = min(6.0, 1.6 + 0.38 * size) if few else 6.0
    with svg.drawing((side, side)) as (figure, axes):
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        if few:
            axes.set_xticks(range(size), [label(name, 14) for name in names], rotation=90)
            axes.set_yticks(range(size), [label(name, 14) for name in names])
            for row, column in zip(*np.nonzero(counts), strict=True):
                tone = "white" if shares[row, column] > 0.5 else "black"
                text = f"{100 * shares[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=tone, fontsize=8)
        axes.set_xlabel("predicted in the worst case")
        axes.set_ylabel("true")
        png = svg.picture(figure)
    common = ", ".join(f"{names[a]} to {names[b]} {k}" for a, b, k in common_confusions(counts, 3)) or "none"
    alt = f"Of {int(counts.sum())} images {int(np.trace(counts))} stay in their class. Commonest confusions: {common}."
    rows = ((names[a], names[b], int(counts[a, b])) for a, b in zip(*np.nonzero(counts), strict=True))
    table = csv_text(("true", "predicted", "examples"), rows)
    return Figure(key, title, alt, table, png=png, size=(round(96 * side), round(96 * side)))


def corruptions(
    key: str, names: Sequence[str], severities: Sequence[int], accuracy: np.ndarray, clean: float
) -> Figure:
    """Accuracy (K, S) under common corruptions over their severity, by family, each corruption a thin line."""
    title = "Accuracy under corruptions by severity"
    families = [_family(name) for name in names]
    with svg.drawing((5.2, 2.6)) as (figure, axes):
        for number, family in enumerate(dict.fromkeys(families)):
            some = 100 * accuracy[[at for at, other in enumerate(families) if other == family]]
            style = svg.series(number)
            for line in some:
                axes.plot(severities, line, color=style["color"], linewidth=0.5, alpha=0.5)
            axes.plot(severities, some.mean(0), label=label(family), **style)
        axes.axhline(100 * clean, color=svg.INK, linewidth=0.9, linestyle=":", label="no corruption")
        svg.percent_axis(axes)
        axes.set_xticks(list(severities))
        axes.set_xlabel("severity (thin: single corruptions; thick: mean of a family)")
        svg.legend(axes)
        means = accuracy.mean(1)
        hardest, easiest = (
            " and ".join(name for name, mean in zip(names, means, strict=True) if mean == extreme)
            for extreme in (means.min(), means.max())
        )
        alt = (
            f"Hardest: {hardest} with {percent(float(means.min()))} over all severities; easiest: {easiest} with "
            f"{percent(float(means.max()))}; without corruption {percent(clean)}."
        )
        rows = (
            (name, severity, float(share))
            for name, shares in zip(names, accuracy, strict=True)
            for severity, share in zip(severities, shares, strict=True)
        )
        return svg.line_figure(figure, key, title, alt, ("corruption", "severity", "accuracy"), rows)


FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def _family(name: str) -> str:
    return next((family for family, names in FAMILIES.items() if name in names), "extra")


def overfitting(key: str, checks: Sequence[tuple[int, float, float, bool]]) -> Figure:
    """Accuracy on training images under one step and under PGD-10: (step, one step, PGD, whether an alarm)."""
    title = "Monitor of catastrophic overfitting"
    steps = [check[0] for check in checks]
    with svg.drawing((5.2, 2.5)) as (figure, axes):
        axes.plot(steps, [100 * check[1] for check in checks], label="one step (FGSM)", **svg.series(0))
        axes.plot(steps, [100 * check[2] for check in checks], label="PGD-10", **svg.series(1))
        alarms = [check for check in checks if check[3]]
        if alarms:
            places = [check[0] for check in alarms], [100 * check[2] for check in alarms]
            axes.scatter(*places, s=150, facecolors="none", edgecolors=svg.INK, linewidths=1.6, label="alarm", zorder=5)
        svg.percent_axis(axes, "training accuracy")
        axes.set_xlabel("optimiser step")
        svg.legend(axes, "upper")
        last = checks[-1]
        said = f"alarms at steps {', '.join(str(check[0]) for check in alarms)}" if alarms else "no alarm"
        alt = f"At step {last[0]}: {percent(last[1])} under one step, {percent(last[2])} under PGD-10; {said}."
        return svg.line_figure(figure, key, title, alt, ("step", "one step", "PGD-10", "alarm"), checks)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
