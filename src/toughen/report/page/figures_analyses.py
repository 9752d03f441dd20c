"""Drawings of the analyses: sweeps, gradients, loss surfaces, image grids, and the radii of IAAT.

sweep("run-1-eps-sweep", "Robust accuracy over the radius", "radius", ["0", "8/255"], [0, 0.03], survived, clean)
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toughen.outcomes import interval
from toughen.report.blocks import Figure, Tile
from toughen.report.csv import csv_text
from toughen.report.formatting import label, percent, printable, radius_text
from toughen.report.page.figures import Points
from toughen.report.page.svg import BLUE, INK, SKY, VERMILLION, cleaned, drawing, legend, picture, plain_ticks, series

THUMB = 112
"""Pictures with a longer side than this are shown smaller: a page has 5 MB."""
MOST = 10
"""Images in a row."""
AMPLIFIED = 10
"""Differences are shown so many times as large, around middle grey."""


def sweep(
    key: str, title: str, what: str, places: Sequence[float], names: Sequence[str], survived: np.ndarray, clean: float
) -> Figure:
    """Robust accuracy over radii or steps, with 95 % intervals, from survived (R, N)."""
    n = survived.shape[1]
    hits = survived.sum(1).tolist()
    shares = [k / n for k in hits]
    worst = np.logical_and.accumulate(survived, axis=0).mean(1)
    bounds = 100 * np.array([interval(k, n) for k in hits])
    with drawing((5.2, 2.5)) as (figure, axes):
        x = list(places)
        if what == "steps":
            axes.set_xscale("log")
        axes.fill_between(x, bounds[:, 0], bounds[:, 1], color=SKY, alpha=0.35, linewidth=0, label="95 % interval")
        axes.plot(x, [100 * share for share in shares], label="measured", **series(0))
        if not np.allclose(worst, shares):
            axes.plot(x, 100 * worst, label="worst so far", **{**series(1), "marker": None})
        axes.axhline(100 * clean, color=INK, linewidth=0.9, linestyle=":", label="clean")
        axes.set_ylim(-2, 102)
        axes.set_yticks(range(0, 101, 20))
        kept = range(0, len(x), max(1, -(-len(x) // 9)))
        axes.set_xticks([x[at] for at in kept], [names[at] for at in kept])
        axes.minorticks_off()
        axes.set_xlabel(label(what))
        axes.set_ylabel("accuracy, %")
        legend(axes)
        ends = ", ".join(f"{percent(share)} at {name}" for share, name in zip(shares, names, strict=True))
        alt = f"Robust accuracy of {n} images: {ends}."
        svg = cleaned(figure, key=key, title=title, alt=alt)
    rows = zip(x, hits, shares, bounds[:, 0] / 100, bounds[:, 1] / 100, worst.tolist(), strict=True)
    table = csv_text((what, "survived", "accuracy", "low", "high", "worst so far"), rows)
    return Figure(key, title, alt, table, svg=svg)


def gradients(key: str, index: np.ndarray, norm: np.ndarray) -> Figure:
    """Histogram of the L2 norm of the loss's gradient at the images, pixels in [0, 1], on a logarithmic scale."""
    title = "Gradient magnitudes"
    positive = norm[norm > 0]
    mean, largest = float(norm.mean()), float(norm.max())
    with drawing((5.2, 2.7)) as (figure, axes):
        if len(positive):
            low, high = np.log10(positive.min()), np.log10(positive.max())
            edges = np.logspace(low - 0.01, high + 0.01, 31)
            axes.hist(positive, bins=edges, color=BLUE)
            axes.set_xscale("log")
            plain_ticks(axes)
            axes.axvline(mean, color=VERMILLION, linestyle="--", label=f"mean {mean:.3g}")
        axes.set_xlabel("L2 norm of the gradient of the cross-entropy, pixels in [0, 1]")
        axes.set_ylabel("images")
        axes.legend()
        zero = int((norm == 0).sum())
        alt = f"{len(norm)} images: mean {mean:.3g}, largest {largest:.3g}, {zero} of them zero."
        svg = cleaned(figure, key=key, title=title, alt=alt)
    return Figure(
        key, title, alt, csv_text(("index", "norm"), zip(index.tolist(), norm.tolist(), strict=True)), svg=svg
    )


def surface(key: str, offsets: np.ndarray, loss: np.ndarray, second: str, number: int) -> Figure:
    """The loss (P, P) on a plane through one image, as a surface and as contours."""
    title = f"Loss around test image {number}"
    middle = len(offsets) // 2
    across = "towards the adversary" if second == "adversarial" else "a second random direction"
    with drawing((7.0, 3.0)) as (figure, axes):
        axes.remove()
        solid, flat = figure.add_subplot(1, 2, 1, projection="3d"), figure.add_subplot(1, 2, 2)
        first, along = np.meshgrid(offsets * 255, offsets * 255, indexing="ij")
        solid.plot_surface(along, first, loss, cmap="viridis", linewidth=0, antialiased=True, rstride=1, cstride=1)
        solid.view_init(elev=28, azim=-58)
        solid.tick_params(labelsize=7)
        solid.locator_params(nbins=4)
        drawn = flat.contourf(along, first, loss, levels=12, cmap="viridis")
        figure.colorbar(drawn, ax=flat, label="cross-entropy")
        flat.plot(0, 0, marker="x", color=VERMILLION, markersize=7, markeredgewidth=2)
        flat.set_aspect("equal")
        flat.grid(visible=False)
        flat.set_xlabel(f"{across}, /255", fontsize=8.5)
        flat.set_ylabel("a random direction, /255", fontsize=8.5)
        png = picture(figure)
    alt = (
        f"Cross-entropy from {float(loss.min()):.3g} to {float(loss.max()):.3g} on a plane that reaches "
        f"{radius_text(float(offsets[-1]))} from the image, where it is {float(loss[middle, middle]):.3g}; one side "
        f"runs {across}."
    )
    rows = (
        (float(offsets[i]), float(offsets[j]), float(loss[i, j]))
        for i in range(len(offsets))
        for j in range(len(offsets))
    )
    return Figure(key, title, alt, csv_text(("first", "second", "loss"), rows), png=png, size=(672, 288))


def png_of(pixels: np.ndarray) -> bytes:
    """An image (C, H, W) uint8 of 1 or 3 channels as PNG, brought to at most 112 pixels a side."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    if max(image.size) > THUMB:
        image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def amplified(image: np.ndarray, other: np.ndarray, times: int = AMPLIFIED) -> np.ndarray:
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

    Args:
        key: see `Figure`.
        title: see `Figure`.
        names: of the classes.
        found: arrays of `Pictures`: index, label, radius, image, clean_prediction, adversarial, prediction.
        variants: what each kind of example is.
        differences: show them below the examples.
        radii: show each image's own radius.
    """
    count = min(MOST, len(found["index"]))
    heads, rows = ["clean"], [[]]
    sheet: list[list[np.ndarray]] = [[]]
    for at in range(count):
        label, predicted = names[int(found["label"][at])], names[int(found["clean_prediction"][at])]
        said = label if predicted == label else f"{label}, seen as {predicted}"
        own = f" (radius {radius_text(float(found['radius'][at]))})" if radii else ""
        tone = "good" if predicted == label else "bad"
        alt = printable(f"Image {int(found['index'][at])}: {said}")
        rows[0].append(Tile(png_of(found["image"][at]), alt, printable(said + own), tone))
        sheet[0].append(found["image"][at])
    for number, variant in enumerate(variants):
        below: list[list[Tile]] = [[], []]
        pixels: list[list[np.ndarray]] = [[], []]
        for at in range(count):
            label, predicted = names[int(found["label"][at])], names[int(found["prediction"][number, at])]
            tone = "good" if predicted == label else "bad"
            attacked = found["adversarial"][number, at]
            change = amplified(found["image"][at], attacked)
            alt = f"Image {int(found['index'][at])} attacked ({variant}): {label} seen as {predicted}"
            below[0].append(Tile(png_of(attacked), printable(alt), printable(predicted), tone))
            below[1].append(Tile(png_of(change), f"What was changed, times {AMPLIFIED}", ""))
            pixels[0].append(attacked)
            pixels[1].append(change)
        rows += below if differences else below[:1]
        heads += [printable(variant), f"change, {AMPLIFIED} times"] if differences else [printable(variant)]
        sheet += pixels if differences else pixels[:1]
    wrong = [int((row[:count] != found["label"][:count]).sum()) for row in found["prediction"]]
    alt = f"{count} images. " + " ".join(
        f"{variant}: {k} of {count} misclassified." for variant, k in zip(variants, wrong, strict=True)
    )
    lines = (
        (
            int(found["index"][at]),
            names[int(found["label"][at])],
            float(found["radius"][at]) if radii else "",
            names[int(found["clean_prediction"][at])],
            *(names[int(row[at])] for row in found["prediction"]),
        )
        for at in range(count)
    )
    table = csv_text(("index", "label", "radius", "clean", *variants), lines)
    png = _sheet([np.concatenate(row, axis=2) for row in sheet])
    return Figure(key, title, printable(alt), table, png=png, tiles=tuple(zip(heads, map(tuple, rows), strict=True)))


def _sheet(rows: Sequence[np.ndarray]) -> bytes:
    from PIL import Image

    pixels = np.concatenate(rows, axis=1)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def radius_histogram(key: str, steps: Sequence[int], edges: Sequence[float], counts: np.ndarray) -> Figure:
    """How the radii of all training examples spread over time, from counts (steps, bins)."""
    title = "Radii of the training images over time"
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    levels = np.asarray(edges) * 255
    with drawing((5.2, 3.0)) as (figure, axes):
        axes.grid(visible=False)
        # Each line of the log stands for the time up to the next one.
        borders = np.append(steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1))
        drawn = axes.pcolormesh(borders, levels, 100 * shares.T, cmap="cividis", vmin=0)
        figure.colorbar(drawn, ax=axes, label="% of the examples")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("radius, /255")
        png = picture(figure)
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
    with drawing((5.2, 2.5)) as (figure, axes):
        axes.plot([x for x, _ in means], [255 * y for _, y in means], color=INK, linewidth=2.4, label="mean")
        for number, (name, points) in enumerate(histories.items()):
            style = {**series(number), "marker": None}
            axes.plot([x for x, _ in points], [255 * y for _, y in points], label=f"image {label(name)}", **style)
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("radius, /255")
        legend(axes, "upper")
        alt = (
            f"The mean radius goes from {255 * means[0][1]:.2f}/255 at step {means[0][0]:g} to "
            f"{255 * means[-1][1]:.2f}/255 at step {means[-1][0]:g}."
        )
        svg = cleaned(figure, key=key, title=title, alt=alt)
    rows = [("mean", x, y) for x, y in means]
    rows += [(f"image {name}", x, y) for name, points in histories.items() for x, y in points]
    return Figure(key, title, alt, csv_text(("of", "step", "radius"), rows), svg=svg)
