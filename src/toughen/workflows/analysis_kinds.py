"""The analyses that a report page draws, by the names of their files.

    kind, make = FILES["eps-sweep.json"]
    make(work, Told("eps-sweep.json", progress)).write(folder / "eps-sweep.json")

Each is a pure function of `Work`, so that files can be made in any order and again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toughen import recipes
from toughen.data import ImageData
from toughen.data.base import Examples
from toughen.data.dataset_card import DatasetCard
from toughen.errors import Option, UsageError
from toughen.evaluation import EpsSweep, GradientMagnitude, LossSurface, StepSweep, WeaklyBounded
from toughen.evaluation.analyses.analysis import Analysis
from toughen.evaluation.analyses.gradients import gradient_magnitude
from toughen.evaluation.analyses.image_grid import Pictures, pictures
from toughen.evaluation.analyses.landscape import Directions, loss_surface, weakly_bounded
from toughen.evaluation.analyses.sweeps import eps_sweep, step_sweep
from toughen.methods.instance_adaptive import InstanceAdaptive
from toughen.methods.wrapper import nested
from toughen.models.prepared import ProgressFunction
from toughen.recipes import Recipe
from toughen.storage.checkpoint import latest_checkpoint
from toughen.threat import L2, Linf, Threat
from toughen.training.setup import load_data
from toughen.workflows.evaluated_images import limited
from toughen.workflows.model_sources import OpenedModel

SHARES = tuple(quarters / 4 for quarters in range(9))
"""Radii of the sweep, as shares of the ball's."""

STEPS = (1, 2, 5, 10, 20, 50, 100)
POINTS = 41
"""Points along a side of a loss surface."""

SURFACES, SHOWN, TURNED = 4, 8, 9
"""Images of the loss surfaces, of the pictures, and of those with a large radius (nine, as in Free, figure 2)."""


def _last(test: Examples, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and positions of the last images; of as many spread over all of them where these lie by class."""
    n = min(n, len(test))
    _, rows, _ = limited(test, n)
    rows = torch.arange(len(test) - n, len(test)) if rows is None else rows
    some = test.take(rows)
    return some.images, some.labels, rows


class Told:
    """Progress of a file, whatever parts its work has, as images done of those that it is of."""

    def __init__(self, name: str, progress: ProgressFunction) -> None:
        self._name, self._progress, self._n = name, progress, 1

    def over(self, n: int, parts: int = 1) -> ProgressFunction:
        """What an analysis of `n` images calls that goes through them so many times, each time under another name."""
        self._n, shares = n, {}

        def told(what: str, done: int, total: int) -> None:
            shares[what] = done / max(1, total)
            # Not all before the file is there.
            self._progress(self._name, min(int(n * sum(shares.values()) / parts), n - 1), n)

        return told

    def end(self) -> None:
        """The file is there."""
        self._progress(self._name, self._n, self._n)


@dataclass(frozen=True, eq=False)
class Radii:
    """What a run of the method instance_adaptive remembers of its training images.

    Attributes:
        run: its folder.
        recipe: of the run.
        about: the data that it was trained on.
        ball: of the method.
        radius: of every training image, (N,); negative where it has not been seen.
    """

    run: Path
    recipe: Recipe
    about: DatasetCard
    ball: Threat
    radius: Tensor

    @cached_property
    def data(self) -> ImageData:
        """The images that the radii are of.

        Raises:
            ValueError: CK302, the training images have changed since.
        """
        data = load_data(self.recipe)
        if "train" in self.about.changed(data.fingerprints):
            raise UsageError(
                f"CK302 the training images of {data.name} have changed since {self.run} was trained, so its radii "
                "belong to others; restore them, or name the other analyses with ",
                Option("only"),
            )
        return data


def radii_of(run: Path) -> Radii | None:
    """The radii in the newest checkpoint; None where the method keeps none, or has seen no example yet."""
    recipe = recipes.load(str(run / "recipe.yaml"))
    newest = latest_checkpoint(run, warn=lambda sentence: None, clean=False)
    for method in nested(recipe.method.resolved(recipe.threat)):
        if isinstance(method, InstanceAdaptive) and newest is not None:
            about = DatasetCard.read(newest.state["data"])
            # Whatever is numbered after the training images is of the extra set.
            radius = newest.tensors("method")["radius"][: about.sizes["train"]]
            return Radii(run, recipe, about, method.ball, radius) if bool((radius >= 0).any()) else None
    return None


@dataclass(frozen=True, eq=False)
class Work:
    """What is analysed.

    Attributes:
        opened: the model and all test images.
        ball: of the attacks.
        test: images of the sweeps and the gradients.
        index: their positions in the test set; None where they are the first.
        seed: of the random draws.
        batch_size: images at a time.
        radii: of a run's training images.
    """

    opened: OpenedModel
    ball: Threat
    test: Examples
    index: Tensor | None
    seed: int
    batch_size: int
    radii: Radii | None

    @property
    def measured(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Model, images and labels of the sweeps and the gradients."""
        return self.opened.model, self.test.images, self.test.labels

    @property
    def drawn(self) -> dict[str, Any]:
        """How every analysis with random draws computes."""
        return {"seed": self.seed, "batch_size": self.batch_size}


def _eps_sweep(work: Work, told: Told) -> EpsSweep:
    radii = [share * float(work.ball.eps) for share in SHARES]
    # Clean and attacked, at every radius.
    progress = told.over(len(work.test), 2 * len(SHARES))
    return eps_sweep(
        *work.measured, radii=radii, norm=work.ball.norm, **work.drawn, index=work.index, progress=progress
    )


def _step_sweep(work: Work, told: Told) -> StepSweep:
    progress = told.over(len(work.test))
    return step_sweep(*work.measured, threat=work.ball, steps=STEPS, **work.drawn, index=work.index, progress=progress)


def _gradients(work: Work, told: Told) -> GradientMagnitude:
    progress = told.over(len(work.test))
    return gradient_magnitude(*work.measured, batch_size=work.batch_size, index=work.index, progress=progress)


def _surface(number: int, work: Work, told: Told) -> LossSurface:
    """Around one of the last images, towards the adversary."""
    x, y, index = (column[number : number + 1] for column in _last(work.opened.test, SURFACES))
    return _plane(work, told, x, y, index, "adversarial")


def _surface_of(position: int, directions: Directions, work: Work, told: Told) -> LossSurface:
    """Around any test image."""
    row = torch.tensor([position])
    some = work.opened.test.take(row)
    return _plane(work, told, some.images, some.labels, row, directions)


def _plane(work: Work, told: Told, x: Tensor, y: Tensor, index: Tensor, directions: Directions) -> LossSurface:
    """The plane whose second direction reaches the rim of the ball."""
    # Both directions are signs: as many of them have the square root of their number as Euclidean length.
    length = math.sqrt(x[0].numel()) if work.ball.norm == L2.norm else 1.0
    given: dict[str, Any] = {"radius": float(work.ball.eps) / length, "directions": directions, "points": POINTS}
    return loss_surface(work.opened.model, x, y, **given, **work.drawn, index=index, progress=told.over(1))


def _turns_into(work: Work, told: Told) -> WeaklyBounded:
    x, y, index = _last(work.opened.test, TURNED)
    progress = told.over(len(x))
    return weakly_bounded(work.opened.model, x, y, batch_size=work.batch_size, index=index, progress=progress)


def _pictures(work: Work, told: Told) -> Pictures:
    x, y, index = _last(work.opened.test, SHOWN)
    spread = int(index[0]) + len(x) < len(work.opened.test)
    which = f"{len(x)} test images spread over all, which lie by class" if spread else f"The last {len(x)} test images"
    return _pictured(work, told, (x, y, index), {str(work.ball): work.ball}, which, work.opened.classes)


def _extreme(largest: bool, work: Work, told: Told) -> Pictures:
    """The training images with the smallest or the largest radii; of equals those with the lowest numbers."""
    assert work.radii is not None
    ball, memory, data = work.radii.ball, work.radii.radius.double(), work.radii.data
    seen = (memory >= 0).nonzero().squeeze(1)
    index = seen[memory[seen].argsort(descending=largest, stable=True)[:SHOWN]]
    some, radius = data.train.take(index), memory[index]
    # The radii of IAAT's own pictures; it has none in L2.
    balls = [Linf(8 / 255), Linf(16 / 255)] if ball.norm == Linf.norm else [ball, ball.scaled(2)]
    threats = {**{str(one): one for one in balls}, "own radius": ball.of_radius(radius)}
    title = f"The {len(index)} training images with the {'largest' if largest else 'smallest'} radii"
    return _pictured(work, told, (some.images, some.labels, index), threats, title, data.classes, radius)


def _pictured(
    work: Work,
    told: Told,
    some: tuple[Tensor, Tensor, Tensor],
    threats: dict[str, Threat],
    title: str,
    classes: Sequence[str],
    radius: Tensor | None = None,
) -> Pictures:
    x, y, index = some
    about: dict[str, Any] = {"title": title, "classes": classes, "radius": radius, "index": index}
    progress = told.over(len(x), len(threats))
    return pictures(work.opened.model, x, y, threats=threats, **about, **work.drawn, progress=progress)


Maker = Callable[[Work, Told], Analysis]

FILES: dict[str, tuple[type[Analysis], Maker]] = {
    "eps-sweep.json": (EpsSweep, _eps_sweep),
    "step-sweep.json": (StepSweep, _step_sweep),
    "gradients.json": (GradientMagnitude, _gradients),
    **{f"surface-{number}.npz": (LossSurface, partial(_surface, number)) for number in range(SURFACES)},
    "turns-into.npz": (WeaklyBounded, _turns_into),
    "pictures.npz": (Pictures, _pictures),
    "radii-smallest.npz": (Pictures, partial(_extreme, False)),
    "radii-largest.npz": (Pictures, partial(_extreme, True)),
}
"""What each file holds and who makes it; those of radii are of runs of the method instance_adaptive."""

DIRECTIONS: dict[str, Directions] = {"random": "rademacher", "adversarial": "adversarial"}
"""What the second direction of a loss surface may be; the first is random."""


def surfaces_of(images: Sequence[int], directions: Sequence[str]) -> dict[str, tuple[type[Analysis], Maker]]:
    """Files as in `FILES`: a surface of each test image, by position, in each kind of plane."""
    return {
        f"surface-of-{image}-{name}.npz": (LossSurface, partial(_surface_of, image, DIRECTIONS[name]))
        for image in dict.fromkeys(images)
        for name in dict.fromkeys(directions)
    }
