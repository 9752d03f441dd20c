"""What a report page draws of a run, or of a model of one's own: sweeps, gradients, surfaces and pictures, as files.

    found = analyse("runs/free", limit=200)                         # into runs/free/analysis
    EpsSweep.read(found.folder / "eps-sweep.json").accuracies

Each analysis is a file that appears whole, so the same call goes on where it was killed. A folder belongs to one model,
one set of images, one ball and one seed, which `identity.json` names; another one is refused.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from toughen.data.base import Examples, fingerprint
from toughen.errors import Command, Option, Part, UsageError, naming
from toughen.evaluation import EpsSweep
from toughen.evaluation.analyses.analysis import Analysis
from toughen.evaluation.runner import memory_explained
from toughen.models.hashes import hash_model, hash_tensor
from toughen.models.identity import (
    CLEAN_LOGITS,
    answers_of,
    begun,
    claim,
    identity_of,
    recognise,
    threat_in_full,
)
from toughen.models.prepared import ProgressFunction
from toughen.modes import plain
from toughen.settings import known
from toughen.storage import files
from toughen.workflows.analysis_kinds import DIRECTIONS, FILES, SURFACES, Maker, Told, Work, radii_of, surfaces_of
from toughen.workflows.evaluated_images import limited
from toughen.workflows.model_sources import ModelSource, is_run, open

IDENTITY = "identity.json"

USUAL = ("adversarial",)
"""Directions of the surfaces, where nobody names any."""

LIMIT = 200
"""Test images of the sweeps and the gradients, where nobody says how many."""

_CALLED = {"data": "other test images", "threat": "another ball"}
"""What may differ between two analyses, where a page has other words for it than an evaluation."""

Makers = Mapping[str, tuple[type[Analysis], Maker]]
"""What each file holds and who makes it."""

_REMEDY: tuple[Part, ...] = ("give another folder with ", Option("out"), ", or delete it")


@dataclass(frozen=True)
class Analysed:
    """What `analyse` did.

    Attributes:
        folder: where the files lie.
        made: names of those that were computed now.
        kept: names of those that were there.
        warning: of the sweep over the radius, where its attack is too weak.
    """

    folder: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    warning: str | None


@naming(size="size", suite=Command("evaluate", "MODEL", suite="square"))
def analyse(
    source: ModelSource | Path | str,
    *,
    limit: int | None = None,
    only: Collection[str] = (),
    images: Sequence[int] | None = None,
    directions: Sequence[str] | None = None,
    threat: str | None = None,
    batch_size: int = 250,
    seed: int = 0,
    out: Path | None = None,
    progress: ProgressFunction | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Analysed:
    """Compute what a page draws, into a folder from which the same call goes on.

    Sweeps and gradients are of the first test images (see `limited`). Surfaces and pictures are of the last ones, which
    nobody has picked; of as many spread over all of them where these lie by class. For a run of the method
    instance_adaptive there are pictures of the training images with the smallest and the largest radii too.

    Args:
        source: the model and how it is fed; a text or path alone says what it is.
        limit: test images of the sweeps and the gradients; 200 by default, or all where there are fewer.
        only: some of the analyses, by the name of their files without the ending; "surface" and "radii" are several.
        images: positions of the test images whose loss surfaces are computed, in place of four of the last ones.
        directions: of their planes beside a random one, "random" or "adversarial" or both; by default the latter.
        threat: another ball than the run's, as text.
        batch_size: images at a time.
        seed: of the random draws.
        out: the folder; by default `analysis` in a run's folder, and `analysis/NAME` for a model of one's own.
        progress: called with (name of the file, images done, images in all).
        note: is told how the model was opened, where that is worth knowing.

    Raises:
        ValueError: as for `open` and the analyses; for a name or an image that is none; for radii of a run that has
            none; for a folder of other analyses, or with other files (EV271).
        Locked: another process writes the folder.
    """
    for name in directions or ():
        known(name, DIRECTIONS, "direction")
    # Before the model is opened.
    _chosen(only, {**FILES, **surfaces_of(images or (), directions or USUAL)})
    opened = open(source)
    what = opened.source.what
    for said in filter(None, (opened.said, opened.used)):
        note(said)
    ball = opened.ball(threat)
    test, index, _ = limited(opened.test, min(LIMIT, len(opened.test)) if limit is None else limit)
    makers = _makers(opened.test, images, directions)
    names = _chosen(only, makers)
    if (images is not None or directions is not None) and not any(name.startswith("surface") for name in names):
        raise UsageError("images and directions are of loss surfaces; add surface to ", Option("only"))
    run = opened.source.path if is_run(what) else None
    radii = None if run is None else radii_of(run)
    if radii is None:
        if only and any(name.startswith("radii") for name in names):
            raise UsageError(f"{what} keeps no radii of training images; leave radii out of ", Option("only"))
        names = [name for name in names if not name.startswith("radii")]
    # One surface an image, and of a very small test set not so many.
    lost = [f"surface-{number}.npz" for number in range(len(opened.test), SURFACES)]
    names = [name for name in names if name not in lost]
    folder = out or (run / "analysis" if run else Path("analysis") / opened.folder.name)
    model = plain(opened.model)
    identity = identity_of(
        model=hash_model(model),
        data=fingerprint({"test": opened.test}),
        images=len(test),
        threat=threat_in_full(ball),
        seed=seed,
        radii=radii and hash_tensor(radii.radius),
    )
    _refuse_foreign(folder)
    work = Work(opened, ball, test, index, seed, batch_size, radii)
    first = test.take(torch.arange(min(len(test), batch_size))).images
    look = partial(answers_of, {"model": (model, first)}, batch_size=batch_size, also={"threat": ball})
    called: dict[str, Any] = {"of": "analyses", "remedy": _REMEDY, **_CALLED}
    found, said = recognise(folder, folder / IDENTITY, identity, look, **called)
    if said:
        note(said)
    with files.lock(folder), memory_explained("give a smaller batch_size, a smaller model or more memory"):
        for stray in folder.glob(".tmp-*"):
            files.delete(stray)
        claim(folder, folder / IDENTITY, found or begun(folder, identity, look), **called)
        kept = [name for name in names if _is_whole(folder / name, makers)]
        for name in (name for name in names if name not in kept):
            told = Told(name, progress or (lambda *now: None))
            makers[name][1](work, told).write(folder / name)
            told.end()
    sweep = folder / "eps-sweep.json"
    warning = EpsSweep.read(sweep).warning if sweep.name in names else None
    return Analysed(folder, tuple(name for name in names if name not in kept), tuple(kept), warning)


def _makers(test: Examples, images: Sequence[int] | None, directions: Sequence[str] | None) -> Makers:
    """The files that can be made, with the surfaces that are asked for in place of the usual ones.

    Raises:
        ValueError: an image that is not there.
    """
    if images is None and directions is None:
        return FILES
    if images is None:
        images = range(max(0, len(test) - SURFACES), len(test))
    for image in images:
        if not 0 <= image < len(test):
            raise UsageError(
                f"there is no test image {image}; there are {len(test)}, so give 0 to {len(test) - 1} for ",
                Option("images"),
            )
    others = {name: made for name, made in FILES.items() if not name.startswith("surface")}
    return surfaces_of(images, directions or USUAL) | others


def _chosen(only: Collection[str], makers: Makers) -> list[str]:
    """The files that names stand for, in their order."""
    stems = [Path(file).stem for file in makers]
    for name in only:
        known(name, [*stems, "surface", "radii"], "analysis")
    return [
        file
        for file, stem in zip(makers, stems, strict=True)
        if not only or any(stem == name or stem.startswith(f"{name}-") for name in only)
    ]


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but analyses, before anything is computed or written."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"EV271 {folder} is a file; give a new or empty folder")
    if not folder.is_dir() or (folder / IDENTITY).is_file():
        return
    # Locks and what a kill left of a file begin with a dot.
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others := [name for name in names if name != CLEAN_LOGITS]:
        raise ValueError(f"EV271 {folder} holds other files ({min(others)}); give a new or empty folder")


def _is_whole(path: Path, makers: Makers) -> bool:
    """Whether a file is there and holds what it should; one that rotted is worth its work, no more."""
    # zipfile, zlib and numpy's reader of headers each have errors of their own for a damaged archive.
    with suppress(Exception):
        return makers[path.name][0].read(path) is not None
    return False
