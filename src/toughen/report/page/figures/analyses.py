"""Drawings of the analyses: sweeps, gradients, loss surfaces, image grids, and the radii of IAAT.

sweep("run-1-eps-sweep", "Robust accuracy over the radius", "radius", [0, 0.03], ["0", "8/255"], {"survived": ..., ...})
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toughen.outcomes import interval
from toughen.report.blocks import Figure, Tile
from toughen.report.csv import csv_text
from toughen.report.formatting import label, percent, printable, radius_text
from toughen.report.page.figures import svg
from toughen.report.page.figures.run import Points

THUMB = 112
"""Pictures with a longer side than this are shown smaller: a page has 5 MB."""
MOST = 10
"""Images in a row."""
AMPLIFIED = 10
"""Differences are shown so many times as large, around middle grey."""


def sweep(
    key: str, title: str, what: str, places: Sequence[float], names: Sequence[str], found: Mapping[str, np.ndarray]
) -> Figure:
    """Robust accuracy over radii or steps, with 95 % intervals, from survived (R, N) and clean_correct (N,)."""
    survived, clean = found["survived"], float(found["clean_correct"].mean())
    n = survived.shape[1]
    hits = survived.sum(1).tolist()
    shares = [k / n for k in hits]
    worst = np.logical_and.accumulate(survived, axis=0).mean(1)
    bounds = 100 * np.array([interval(k, n) for k in hits])
    with svg.drawing((5.2, 2.5)) as (figure, axes):
        x = list(places)
        if what == "steps":
            axes.set_xscale("log")
        axes.fill_between(x, bounds[:, 0], bounds[:, 1], color=svg.SKY, alpha=0.35, linewidth=0, label="95 % interval")
        axes.plot(x, [100 * share for share in shares], label="measured", **svg.series(0))
        if not np.allclose(worst, shares):
            axes.plot(x, 100 * worst, label="worst so far", **{**svg.series(1), "marker": None})
        axes.axhline(100 * clean, color=svg.INK, linewidth=0.9, linestyle=":", label="clean")
        svg.percent_axis(axes)
        kept = range(0, len(x), max(1, -(-len(x) // 9)))
        axes.set_xticks([x[at] for at in kept], [names[at] for at in kept])
        axes.minorticks_off()
        axes.set_xlabel(label(what))
        svg.legend(axes)
        ends = ", ".join(f"{percent(share)} at {name}" for share, name in zip(shares, names, strict=True))
        alt = f"Robust accuracy of {n} images: {ends}."
        rows = zip(x, hits, shares, bounds[:, 0] / 100, bounds[:, 1] / 100, worst.tolist(), strict=True)
        columns = (what, "survived", "accuracy", "low", "high", "worst so far")
        return svg.line_figure(figure, key, title, alt, columns, rows)


def gradients(key: str, index: np.ndarray, norm: np.ndarray) -> Figure:
    """Histogram of the L2 norm of the loss's gradient at the images, pixels in [0, 1], on a logarithmic scale."""
    title = "Gradient magnitudes"
    positive = norm[norm > 0]
    mean, largest = float(norm.mean()), float(norm.max())
    with svg.drawing((5.2, 2.7)) as (figure, axes):
        if len(positive):
            low, high = np.log10(positive.min()), np.log10(positive.max())
            edges = np.logspace(low - 0.01, high + 0.01, 31)
            axes.hist(positive, bins=edges, color=svg.BLUE)
            axes.set_xscale("log")
            svg.plain_ticks(axes)
            axes.axvline(mean, color=svg.VERMILLION, linestyle="--", label=f"mean {mean:.3g}")
        axes.set_xlabel("L2 norm of the gradient of the cross-entropy, pixels in [0, 1]")
        axes.set_ylabel("images")
        if len(positive):
            svg.legend(axes, "upper")
        zero = int((norm == 0).sum())
        alt = f"{len(norm)} images: mean {mean:.3g}, largest {largest:.3g}, {zero} of them zero."
        rows = zip(index.tolist(), norm.tolist(), strict=True)
        return svg.line_figure(figure, key, title, alt, ("index", "norm"), rows)


def surface(key: str, offsets: np.ndarray, loss: np.ndarray, second: str, number: int) -> Figure:
    """The loss (P, P) on a plane through one image, as a surface and as contours."""
    middle = len(offsets) // 2
    across = "towards the adversary" if second == "adversarial" else "a second random direction"
    plane = "towards the adversary" if second == "adversarial" else "two random directions"
    title = f"Loss around test image {number}, {plane}"
    with svg.drawing((7.0, 3.0)) as (figure, axes):
        axes.remove()
        solid, flat = figure.add_subplot(1, 2, 1, projection="3d"), figure.add_subplot(1, 2, 2)
        first, along = np.meshgrid(offsets * 255, offsets * 255, indexing="ij")
        solid.plot_surface(along, first, loss, cmap="viridis", linewidth=0, antialiased=True, rstride=1, cstride=1)
        solid.view_init(elev=28, azim=-58)
        solid.tick_params(labelsize=7)
        solid.locator_params(nbins=4)
        drawn = flat.contourf(along, first, loss, levels=12, cmap="viridis")
        figure.colorbar(drawn, ax=flat, label="cross-entropy")
        flat.plot(0, 0, marker="x", color=svg.VERMILLION, markersize=7, markeredgewidth=2)
        flat.set_aspect("equal")
        flat.grid(visible=False)
        flat.set_xlabel(f"{across}, /255", fontsize=8.5)
        flat.set_ylabel("a random direction, /255", fontsize=8.5)
        png = svg.picture(figure)
    alt = (
        f"Cross-entropy from {float(loss.min()):.3g} to {float(loss.max()):.3g} on a plane that reaches "
        f"{radius_text(float(offsets[-1]))} from the image, where it is {float(loss[middle, middle]):.3g}; one side "
        f"runs {across}."
    )
    places = offsets.tolist()
    rows = ((first, second, float(loss[i, j])) for i, first in enumerate(places) for j, second in enumerate(places))
    return Figure(key, title, alt, csv_text(("first", "second", "loss"), rows), png=png, size=(672, 288))


def encode_png(pixels: np.ndarray, side: int | None = None) -> bytes:
    """An image (C, H, W) uint8 of 1 or 3 channels as PNG, brought to at most so many pixels a side."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    if side is not None and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def amplify(image: np.ndarray, other: np.ndarray, times: int = AMPLIFIED) -> np.ndarray:
    """The difference of two images (C, H, W) uint8, so many times as large, around middle grey."""
    difference = other.astype(np.int64) - image.astype(np.int64)
    return np.clip(128 + times * difference, 0, 255).astype(np.uint8)


def grid(
    key: str,
    title: str,
    names: Mapping[int, str],
    found: Mapping[str, Any],
    variants: Sequence[str],
    *,
    differences: bool = True,
    radii: bool = False,
) -> Figure:
    """Images, adversarial examples of them and the differences: a column for each image, at most ten.

    Args (`key` and `title` as for `Figure`):
        names: of the classes.
        found: arrays of `Pictures`: index, label, radius, image, clean_prediction, adversarial, prediction.
        variants: what each kind of example is.
        differences: show them below the examples.
        radii: show each image's own radius.
    """
    count = min(MOST, len(found["index"]))
    index, images = found["index"][:count].tolist(), list(found["image"][:count])
    true, clean = ([names[int(k)] for k in found[key][:count]] for key in ("label", "clean_prediction"))
    predicted = [[names[int(k)] for k in row[:count]] for row in found["prediction"]]
    radius = [float(one) for one in found["radius"][:count]] if radii else [""] * count
    tiles = []
    for number, image, name, seen, own in zip(index, images, true, clean, radius, strict=True):
        said = name if seen == name else f"{name}, seen as {seen}"
        caption = f"{said} (radius {radius_text(own)})" if isinstance(own, float) else said
        tiles.append(_tile(image, f"Image {number}: {said}", caption, _tone(seen == name)))
    rows = [("clean", tiles, images)]
    for variant, attacked, classes in zip(variants, found["adversarial"], predicted, strict=True):
        pixels = list(attacked[:count])
        tiles = [
            _tile(one, f"Image {number} attacked ({variant}): {name} seen as {seen}", seen, _tone(seen == name))
            for number, one, name, seen in zip(index, pixels, true, classes, strict=True)
        ]
        rows.append((printable(variant), tiles, pixels))
        if differences:
            changes = [amplify(image, one) for image, one in zip(images, pixels, strict=True)]
            tiles = [_tile(change, f"What was changed, times {AMPLIFIED}", "") for change in changes]
            rows.append((f"change, {AMPLIFIED} times", tiles, changes))
    wrong = [int((row[:count] != found["label"][:count]).sum()) for row in found["prediction"]]
    alt = f"{count} images. " + " ".join(
        f"{variant}: {k} of {count} misclassified." for variant, k in zip(variants, wrong, strict=True)
    )
    table = csv_text(
        ("index", "label", "radius", "clean", *variants), zip(index, true, radius, clean, *predicted, strict=True)
    )
    sheet = encode_png(np.concatenate([np.concatenate(pixels, axis=2) for _, _, pixels in rows], axis=1))
    grid = tuple((heading, tuple(tiles)) for heading, tiles, _ in rows)
    return Figure(key, title, printable(alt), table, png=sheet, tiles=grid)


def _tile(pixels: np.ndarray, alt: str, caption: str, tone: str = "") -> Tile:
    return Tile(encode_png(pixels, THUMB), printable(alt), printable(caption), tone)


def _tone(right: bool) -> str:
    return "good" if right else "bad"


def radius_histogram(key: str, steps: Sequence[int], edges: Sequence[float], counts: np.ndarray) -> Figure:
    """How the radii of all training examples spread over time, from counts (steps, bins)."""
    title = "Radii of the training images over time"
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    levels = np.asarray(edges) * 255
    with svg.drawing((5.2, 3.0)) as (figure, axes):
        axes.grid(visible=False)
        # A line of the log is drawn up to the next one.
        borders = np.append(steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1))
        drawn = axes.pcolormesh(borders, levels, 100 * shares.T, cmap="cividis", vmin=0)
        figure.colorbar(drawn, ax=axes, label="% of the examples")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("radius, /255")
        png = svg.picture(figure)
    top = int(shares[-1].argmax())
    alt = (
        f"At step {steps[-1]} the commonest radii lie between {levels[top]:.1f} and {levels[top + 1]:.1f} of 255, with "
        f"{percent(float(shares[-1, top]))} of the examples."
    )
    rows = (
        (step, float(edges[bin_]), float(edges[bin_ + 1]), int(counts[at, bin_]))
        for at, step in enumerate(steps)
        for bin_ in range(counts.shape[1])
    )
    return Figure(key, title, alt, csv_text(("step", "from", "to", "examples"), rows), png=png, size=(499, 288))


def radius_growth(key: str, means: Points, histories: Mapping[str, Points]) -> Figure:
    """The mean radius, and those of three training images, over the optimiser steps."""
    title = "Mean radius, and three images' own"
    with svg.drawing((5.2, 2.5)) as (figure, axes):
        axes.plot([x for x, _ in means], [255 * y for _, y in means], color=svg.INK, linewidth=2.4, label="mean")
        for number, (name, points) in enumerate(histories.items()):
            style = {**svg.series(number), "marker": None}
            axes.plot([x for x, _ in points], [255 * y for _, y in points], label=f"image {label(name)}", **style)
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("radius, /255")
        svg.legend(axes, "upper")
        alt = (
            f"The mean radius goes from {255 * means[0][1]:.2f}/255 at step {means[0][0]:g} to "
            f"{255 * means[-1][1]:.2f}/255 at step {means[-1][0]:g}."
        )
        lines = {"mean": means, **{f"image {name}": points for name, points in histories.items()}}
        rows = ((name, x, y) for name, points in lines.items() for x, y in points)
        return svg.line_figure(figure, key, title, alt, ("of", "step", "radius"), rows)
