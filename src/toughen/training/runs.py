"""Finished or unfinished runs, opened from their folders, and what is evaluated of them.

Example:
    run = open_run(Path("runs/free"))
    run.model, run.data.test
"""

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from toughen import distributed, recipes
from toughen.checkpoint import latest_checkpoint
from toughen.data import ImageData, Split, load
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.ledger import Keep
from toughen.evaluation.progress import Progress
from toughen.evaluation.suites import find, with_step
from toughen.models import Classifier
from toughen.naming import format_number
from toughen.recipes import Recipe
from toughen.recipes.schema import check_radius
from toughen.threat import Threat, parse
from toughen.training.setup import build_model, chosen_device


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, opened.

    Attributes:
        folder: where it is.
        recipe: what was trained.
        data: what it was trained on, with the test split.
        model: in inference mode, on the recipe's device.
        step: optimiser steps behind these weights.
        weights: which weights these are, like `best-weights`.
    """

    folder: Path
    recipe: Recipe
    data: ImageData
    model: Classifier
    step: int
    weights: str


def open_run(folder: Path, *, checkpoint: str = "best", weights: str | None = None) -> Run:
    """Open a run folder.

    Args:
        folder: of the run.
        checkpoint: "best" by robust validation accuracy, or "last".
        weights: "weights" or an average like "average-0.995"; the recipe's headline by default.

    Raises:
        ValueError: the folder is no run, has no checkpoint yet, or not these weights.
        Damaged: it has checkpoints but none is whole.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint is {checkpoint!r}; it must be best or last")
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} is no run folder: it holds no recipe.yaml; give the --out of a toughen train")
    recipe = recipes.load(str(folder / "recipe.yaml"))
    newest = latest_checkpoint(folder, warn=print, clean=False)
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint yet; give the same toughen train command to go on with it")
    name = weights or recipe.headline
    group = f"best-{name}" if checkpoint == "best" else name
    if not newest.has(group):
        there = [c for c in ("weights", *(f"average-{d:g}" for d in recipe.averages)) if newest.has(c)]
        if name in there:
            raise ValueError(f"{folder} has not been validated yet, so there is no best; use --checkpoint last")
        raise ValueError(f"{folder} has no weights {name!r}; it has {', '.join(there)}")
    data = load(recipe.data.source)
    if newest.state["data"] != data.fingerprint:
        raise ValueError(f"CK302 {folder} was trained on other images than {data.name} holds now; restore them")
    model = build_model(recipe, data)
    model.load_state_dict(newest.tensors(group))
    step = newest.state["best"][name]["step"] if checkpoint == "best" else newest.step
    return Run(folder, recipe, data, model.to(chosen_device(recipe.device)).eval(), step, group)


def imported(reference: str) -> object:
    """What `package.module:name` or `path/to/file.py:name` stands for: code of the user's own, run by naming it.

    Raises:
        ValueError: there is no such module, file or name.
    """
    place, _, name = reference.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"{reference!r} cannot be imported: {error}") from None
    if not hasattr(module, name):
        raise ValueError(f"{place} has no {name!r}; give FILE.py:NAME or package.module:NAME")
    return getattr(module, name)


def is_reference(text: str) -> bool:
    """Whether a text has the form of an import, `file.py:name` or `package.module:name`."""
    return re.fullmatch(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*", text) is not None


@dataclass(frozen=True, eq=False)
class Subject:
    """What an evaluation is of.

    Attributes:
        model: in the mode in which it was given.
        test: the images.
        threat: the ball in which it was trained, where that is known.
        folder: where its evaluations go.
        variant: what tells these weights from the run's usual ones, for the name of the folder.
    """

    model: nn.Module
    test: Split
    threat: Threat | None
    folder: Path
    variant: str = ""


def open_subject(what: str, *, data: str | None, checkpoint: str = "best", weights: str | None = None) -> Subject:
    """A run folder, or a function of the user's own that returns a module.

    Args:
        what: a run folder, or `FILE.py:FUNCTION` or `package.module:FUNCTION`, a function without arguments that
            returns a module which maps images in [0, 1] to logits.
        data: data set of a module; a run brings its own.
        checkpoint: of a run, see `open_run`.
        weights: of a run, see `open_run`.

    Raises:
        ValueError: as for `open_run`; or what is named cannot be imported or returns no module.
    """
    if not is_reference(what) or Path(what).is_dir():
        if data is not None:
            raise ValueError("data goes with a model of one's own; a run is evaluated on the data it was trained on")
        with torch.random.fork_rng():
            run = open_run(Path(what), checkpoint=checkpoint, weights=weights)
        usual = run.weights == f"best-{run.recipe.headline}"
        folder = Path(what) / "evaluation"
        return Subject(run.model, run.data.test, run.recipe.threat, folder, "" if usual else run.weights)
    if data is None:
        raise ValueError(f"{what} is a model without data; give --data, like --data cifar10")
    build = imported(what)
    model = build() if callable(build) and not isinstance(build, nn.Module) else build
    if not isinstance(model, nn.Module):
        raise ValueError(f"{what} gave {type(model).__name__}; it must be or return a torch.nn.Module")
    name = re.sub(r"\W+", "-", what).strip("-")
    return Subject(model.to(chosen_device("auto")), load(data).test, None, Path("evaluation") / name)


def evaluate_run(
    what: Path | str,
    *,
    suite: str,
    limit: int | None = None,
    data: str | None = None,
    checkpoint: str = "best",
    weights: str | None = None,
    threat: str | None = None,
    batch_size: int = 250,
    seed: int = 0,
    step_size: float | None = None,
    independent: bool = False,
    keep: Keep | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a run or a model on the test split, into a folder from which the same call goes on.

    Under torchrun the ranks share the work.

    Args:
        what: see `open_subject`.
        suite: name of the attacks, or a dict of one's own as `FILE.py:NAME` or `package.module:NAME`.
        limit: only the first so many test images.
        data: see `open_subject`.
        checkpoint: see `open_run`.
        weights: see `open_run`.
        threat: another ball than the run's, as text.
        batch_size: images at a time.
        seed: of the attacks.
        step_size: of the suite's PGD attacks, in pixel units, instead of the customary one.
        independent: run every attack on all examples that are classified correctly.
        keep: also keep the adversarial examples, see `evaluate`.
        out: the folder; by default named after what is evaluated and how, `evaluation/` in a run's folder.
        progress: see `evaluate`.

    Returns:
        The evaluation and the folder it lies in.
    """
    subject = open_subject(str(what), data=data, checkpoint=checkpoint, weights=weights)
    ball = check_radius(parse(threat)) if threat is not None else subject.threat
    if ball is None:
        raise ValueError(f"{what} does not say within which ball; give --threat, like --threat linf:8/255")
    test = subject.test
    if limit is not None and limit > len(test):
        raise ValueError(f"limit is {limit}, but there are {len(test)} test images; give at most that")
    n = limit or len(test)
    attacks = suite
    if is_reference(suite):
        attacks = imported(suite)
        if not isinstance(attacks, Mapping):
            raise ValueError(f"{suite} is {type(attacks).__name__}; it must be a dict from labels to attacks")
    elif step_size is not None:
        attacks = with_step(find(suite, ball, side=max(test.images.shape[-2:])), step_size)
    differs = ball != subject.threat
    parts = [re.sub(r"[^\w+-]+", "-", suite), str(ball).replace("/", "over").replace(":", "-") if differs else ""]
    parts += [f"step-{format_number(step_size).replace('/', 'over')}" if step_size is not None else ""]
    parts += [f"n{n}" if n < len(test) else "", subject.variant, f"seed{seed}" if seed else ""]
    parts += ["independent" if independent else "", keep or ""]
    into = out or subject.folder / "_".join(part for part in parts if part)
    with distributed.group(torch.device(next(subject.model.parameters(), torch.zeros(())).device)):
        found = evaluate(
            subject.model,
            test.images[:n],
            test.labels[:n],
            threat=ball,
            suite=attacks,
            seed=seed,
            batch_size=batch_size,
            independent=independent,
            folder=into,
            keep=keep,
            shared=distributed.world() > 1,
            progress=progress,
        )
    return found, into
