"""The sections of a run's analyses: sweeps, gradients, surfaces, pictures, and the radii of IAAT.

for section in describe_analyses(run, "run-1"):
    ...
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from toughen.errors import Command
from toughen.report.blocks import Block, Figure, Paragraph, Section, Table, TableCell
from toughen.report.formatting import radius_text
from toughen.report.page.figures import analyses as draw
from toughen.report.records import RunRecord


def describe_analyses(run: RunRecord, anchor: str) -> list[Section]:
    """The sections, each with what there is or the line that says how to make it."""

    def describe(name: str, what: str, make: Callable[[str, Any], Iterator[Block]]) -> list[Block]:
        found = run.analyses.get(name)
        return [_missing(run, what, name)] if found is None else list(make(anchor, found))

    sweeps = describe("eps-sweep", "sweep over radii", _describe_radius_sweep)
    sweeps += describe("step-sweep", "sweep over attack steps", _describe_step_sweep)
    gradients = describe("gradients", "gradient magnitudes", _describe_gradients)
    images = describe("pictures", "pictures of adversarial examples", partial(_describe_pictures, run))
    turned = "pictures of what large perturbations turn images into"
    images += describe("turns-into", turned, partial(_describe_large_perturbations, run))
    sections = [
        Section("Over radii and steps", sweeps),
        Section("Gradients and loss surfaces", [*gradients, *_describe_surfaces(run, anchor)]),
        Section("Images", images),
    ]
    radii = list(_describe_radii(run, anchor))
    return [*sections, Section("Radii of the training images", radii)] if radii else sections


def _missing(run: RunRecord, what: str, name: str) -> Paragraph:
    return Paragraph.missing(what, Command("analyse", run.name, only=name))


def _describe_radius_sweep(anchor: str, found: Any) -> Iterator[Block]:
    radii, norm = found["radii"].tolist(), found.get("norm", "")
    names = [radius_text(radius) for radius in radii]
    caption = "Robust accuracy over the radius"
    title = f"{caption} ({norm}, {found.get('suite', '')})"
    yield draw.sweep(f"{anchor}-eps-sweep", title, f"radius, {norm}", radii, names, found)
    yield _sweep_table(f"{anchor}-eps-table", caption, "radius", radii, names, found)
    hits = found["survived"].sum(1)
    marginal = np.asarray(found.get("marginal", np.zeros_like(found["survived"])), dtype=bool)
    for at in range(len(radii) - 1):
        below, above = found["survived"][at], found["survived"][at + 1]
        doubtful = int((above & ~below & (marginal[at] | marginal[at + 1])).sum())
        rise = int(hits[at + 1] - hits[at])
        if rise > doubtful:
            yield Paragraph(
                f"Robust accuracy rises by {rise} of {len(below)} images from radius {names[at]} to {names[at + 1]}, "
                "which no sound attack shows: use more steps or a stronger suite, and look for masked gradients.",
                "bad",
            )


def _describe_step_sweep(anchor: str, found: Any) -> Iterator[Block]:
    steps = found["steps"].tolist()
    names, caption = [str(step) for step in steps], "Robust accuracy over the steps of PGD"
    yield draw.sweep(f"{anchor}-step-sweep", f"{caption} ({found.get('threat', '')})", "steps", steps, names, found)
    yield _sweep_table(f"{anchor}-step-table", caption, "steps", steps, names, found)


def _sweep_table(key: str, caption: str, what: str, places: list[Any], names: list[str], found: Any) -> Table:
    n = found["survived"].shape[1]
    table = Table(key, f"{caption}, {n} images", (what, "robust"))
    for place, name, row in zip(places, names, found["survived"], strict=True):
        k = int(row.sum())
        table.add(TableCell.number(place, name), TableCell.count(k, n))
    return table


def _describe_gradients(anchor: str, found: Any) -> Iterator[Block]:
    yield draw.gradients(f"{anchor}-gradients", found["index"], found["norm"])
    table = Table(
        f"{anchor}-gradient-table", f"Gradient magnitudes of {len(found['norm'])} images", ("of", "mean", "max")
    )
    for pixel_range in (1, 255):
        for squared in (False, True):
            values = (found["norm"] / pixel_range) ** (2 if squared else 1)
            name = f"{'squared L2 norm' if squared else 'L2 norm'}, pixels in [0, {pixel_range}]"
            table.add(name, float(values.mean()), float(values.max()))
    yield table


def _describe_surfaces(run: RunRecord, anchor: str) -> Iterator[Block]:
    found = {name: one for name, one in run.analyses.items() if name.startswith("surface")}
    if not found:
        yield _missing(run, "loss surface", "surface")
    for name, one in found.items():
        for at in range(min(2, len(one["index"]))):
            key = f"{anchor}-{_identifier(name)}" + (f"-{at}" if at else "")
            number = int(one["index"][at])
            yield draw.surface(key, one["offsets"], one["loss"][at], str(one.get("directions", "")), number)


def _describe_pictures(run: RunRecord, anchor: str, found: Any) -> Iterator[Block]:
    yield _draw_grid(run, f"{anchor}-pictures", found)
    yield Paragraph(f"Differences are shown {draw.AMPLIFIED} times as large, around middle grey.", "note")


def _describe_large_perturbations(run: RunRecord, anchor: str, found: Any) -> Iterator[Block]:
    image = np.rint(np.clip(found["clean"], 0, 1) * 255).astype(np.uint8)
    arrays = {
        **{name: found[name] for name in ("index", "label", "clean_prediction")},
        "radius": np.zeros(len(image)),
        "image": image,
        "adversarial": found["images_uint8"][None],
        "prediction": found["prediction_uint8"][None],
    }
    ball = f"linf:{radius_text(float(found.get('eps', 0)))}, {found.get('steps')} steps of BIM"
    title = f"What images turn into within {ball}"
    yield draw.grid(f"{anchor}-turns-into", title, _class_names(run, arrays), arrays, [ball], differences=False)


def _describe_radii(run: RunRecord, anchor: str) -> Iterator[Block]:
    logged = [record for record in run.metrics if "radius_mean" in record]
    if not logged:
        return
    steps, edges, counts = _collect_histograms(logged)
    if steps:
        yield draw.radius_histogram(f"{anchor}-radii", steps, edges, counts)
    # The examples followed are those with the lowest numbers seen so far; the last line names the final three.
    names = list(logged[-1].get("radius_of", {}))[:3]
    histories = {
        name: [(record["step"], record["radius_of"][name]) for record in logged if name in record.get("radius_of", {})]
        for name in names
    }
    means = [(record["step"], record["radius_mean"]) for record in logged]
    yield draw.radius_growth(f"{anchor}-growth", means, histories)
    for name in ("radii-smallest", "radii-largest"):
        found = run.analyses.get(name)
        if found is None:
            yield _missing(run, f"pictures of the images with the {name.removeprefix('radii-')} radii", name)
        else:
            yield _draw_grid(run, f"{anchor}-{name}", found, radii=True)


def _collect_histograms(logged: list[Any]) -> tuple[list[int], list[float], np.ndarray]:
    """Steps, edges and counts (steps, bins) of the histograms with the bins of the one that reaches farthest.

    A histogram has as many bins as the largest radius needed at that step.
    """
    found = [(record["step"], record["radius_histogram"]) for record in logged if "radius_histogram" in record]
    edges = max((one["edges"] for _, one in found), key=lambda edges: (len(edges), edges[-1:]), default=[])
    same = [(step, one["counts"]) for step, one in found if one["edges"][:-1] == edges[: len(one["edges"]) - 1]]
    counts = [list(some) + [0] * (len(edges) - 1 - len(some)) for _, some in same]
    return [step for step, _ in same], edges, np.array(counts)


def _draw_grid(run: RunRecord, key: str, found: dict[str, Any], *, radii: bool = False) -> Figure:
    variants = [str(name) for name in found.get("variants", [])]
    variants += [f"variant {number}" for number in range(len(variants), len(found["prediction"]))]
    title = str(found.get("title") or "Images, attacked and the difference")
    names = _class_names(run, found)
    return draw.grid(key, title, names, found, variants[: len(found["prediction"])], radii=radii)


def _class_names(run: RunRecord, found: dict[str, Any]) -> dict[int, str]:
    """Class names by number, from the file or else the run."""
    own = [str(name) for name in found.get("classes", [])]
    numbers = {int(n) for key in ("label", "clean_prediction", "prediction") for n in np.unique(found[key])}
    return {number: own[number] if 0 <= number < len(own) else run.class_name(number) for number in numbers}


def _identifier(name: str) -> str:
    """A file's name as part of an id: letters, digits and hyphens."""
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in name)
