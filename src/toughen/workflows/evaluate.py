"""Evaluations of runs and models, into folders from which they go on.

found, folder = evaluate_run("runs/free", suite="autoattack", limit=1000)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.resume import Keep
from toughen.evaluation.suites import find, with_step
from toughen.evaluation.time_left import Progress
from toughen.parallel import ranks
from toughen.recipes.schema import check_radius
from toughen.settings import format_number, known
from toughen.threat import parse
from toughen.workflows.model_sources import imported, is_reference, limited, open_subject


def evaluate_run(
    what: Path | str,
    *,
    suite: str,
    attack: str | None = None,
    limit: int | None = None,
    data: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Evaluation, Path]:
    """Evaluate a run or a model on the test split, into a folder from which the same call goes on.

    Under torchrun the ranks share the work.

    Args:
        what: see `open_subject`.
        suite: name of the attacks, or a dict of one's own as `FILE.py:NAME` or `package.module:NAME`.
        attack: of the suite, this one alone, by its label.
        limit: only so many test images, see `limited`.
        data: see `open_subject`.
        size: see `open_subject`.
        mean: see `open_subject`.
        std: see `open_subject`.
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
        note: is told how the model was opened, where that is worth knowing.

    Returns:
        The evaluation and the folder it lies in.
    """
    subject = open_subject(str(what), data=data, size=size, mean=mean, std=std, checkpoint=checkpoint, weights=weights)
    if subject.said:
        note(subject.said)
    ball = check_radius(parse(threat)) if threat is not None else subject.threat
    if ball is None:
        raise ValueError(f"{what} does not say within which ball; give --threat, like --threat linf:8/255")
    test, index, notes = limited(subject.test, limit)
    attacks: Any = suite
    if is_reference(suite):
        attacks = imported(suite)
        if not isinstance(attacks, Mapping):
            raise ValueError(f"{suite} is {type(attacks).__name__}; it must be a dict from labels to attacks")
    if (step_size is not None or attack is not None) and isinstance(attacks, str):
        attacks = find(suite, ball, side=max(test.shape[-2:]))
    if attack is not None:
        # An adaptive suite has no attacks to choose from.
        named = attacks if isinstance(attacks, Mapping) else {}
        attacks = {known(attack, named, f"attack of suite {suite}"): named[attack]}
    if step_size is not None:
        attacks = with_step(attacks, step_size)
    differs = ball != subject.threat
    parts = [re.sub(r"[^\w+-]+", "-", f"{suite}-{attack}" if attack else suite)]
    parts += [str(ball).replace("/", "over").replace(":", "-") if differs else ""]
    parts += [f"step-{format_number(step_size).replace('/', 'over')}" if step_size is not None else ""]
    parts += [f"n{len(test)}" if len(test) < len(subject.test) else "", subject.variant, f"seed{seed}" if seed else ""]
    parts += ["independent" if independent else "", keep or ""]
    into = out or subject.folder / "_".join(part for part in parts if part)
    with ranks.group(torch.device(next(subject.model.parameters(), torch.zeros(())).device)):
        found = evaluate(
            subject.model,
            test.images,
            test.labels,
            threat=ball,
            suite=attacks,
            seed=seed,
            batch_size=batch_size,
            independent=independent,
            folder=into,
            keep=keep,
            shared=ranks.world() > 1,
            progress=progress,
            index=index,
            notes=[f"{said}; that is its index in examples.parquet" for said in notes],
        )
    return found, into
