"""Evaluations of runs and models, into folders from which they go on.

found, folder = evaluate("runs/free", EvaluationSettings("autoattack", limit=1000))
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toughen import evaluation
from toughen.errors import naming
from toughen.evaluation import Evaluation
from toughen.evaluation.resume import Keep
from toughen.evaluation.suites import find, with_step
from toughen.evaluation.time_left import StatusCallback
from toughen.parallel import ranks
from toughen.settings import format_number, known
from toughen.threat import Threat
from toughen.workflows.evaluated_images import limited
from toughen.workflows.model_sources import ModelSource, OpenedModel, folder_of, open
from toughen.workflows.user_code import imported, is_reference, naming_code


@dataclass(frozen=True)
class EvaluationSettings:
    """What is attacked, how, and what is kept of it.

    Attributes:
        suite: name of the attacks, or a dict of one's own as `FILE.py:NAME` or `package.module:NAME`.
        attack: of the suite, this one alone, by its label.
        limit: only so many test images, see `limited`.
        threat: another ball than the run's, as text.
        batch_size: images at a time.
        seed: of the attacks.
        step_size: of the suite's PGD attacks, in pixel units, instead of the customary one.
        independent: run every attack on all examples that are classified correctly.
        keep: also keep the adversarial examples, see `toughen.evaluate`.
    """

    suite: str
    attack: str | None = None
    limit: int | None = None
    threat: str | None = None
    batch_size: int = 250
    seed: int = 0
    step_size: float | None = None
    independent: bool = False
    keep: Keep | None = None

    @cached_property
    def named(self) -> Any:
        """The name of the suite, or the dict that it stands for, whose file is run when this is first asked for."""
        if not is_reference(self.suite):
            return self.suite
        attacks = imported(self.suite)
        if not isinstance(attacks, Mapping):
            raise ValueError(f"{self.suite} is {type(attacks).__name__}; it must be a dict from labels to attacks")
        return attacks

    def attacks(self, ball: Threat, side: int) -> Any:
        """The suite as `toughen.evaluate` takes it, for images of that side."""
        attacks = self.named
        if (self.step_size is not None or self.attack is not None) and isinstance(attacks, str):
            attacks = find(self.suite, ball, side=side)
        if self.attack is not None:
            # An adaptive suite has no attacks to choose from.
            members = attacks if isinstance(attacks, Mapping) else {}
            attacks = {known(self.attack, members, f"attack of suite {self.suite}"): members[self.attack]}
        return attacks if self.step_size is None else with_step(attacks, self.step_size)

    def folder(self, opened: OpenedModel, ball: Threat, images: int) -> Path:
        """Where the result goes, named after what is unusual."""
        return folder_of(
            opened,
            re.sub(r"[^\w+-]+", "-", f"{self.suite}-{self.attack}" if self.attack else self.suite),
            str(ball).replace("/", "over").replace(":", "-") if ball != opened.threat else "",
            f"step-{format_number(self.step_size).replace('/', 'over')}" if self.step_size is not None else "",
            images=images,
            seed=self.seed,
            after=("independent" if self.independent else "", self.keep or ""),
        )


@naming(size="size")
def evaluate(
    source: ModelSource | Path | str,
    settings: EvaluationSettings | str,
    *,
    out: Path | None = None,
    progress: StatusCallback | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Evaluation, Path]:
    """Evaluate a run or a model on the test split, into a folder from which the same call goes on.

    Under torchrun the ranks share the work.

    Args:
        source: the model and how it is fed; a text or path alone says what it is.
        settings: how it is attacked; a text alone is the suite.
        out: the folder; by default named after what is evaluated and how, `evaluation/` in a run's folder.
        progress: see `toughen.evaluate`.
        note: is told how the model was opened, where that is worth knowing.

    Returns:
        The evaluation and the folder it lies in.

    Raises:
        ValueError: as for `open` and `toughen.evaluate`; or no ball is known.
    """
    asked = EvaluationSettings(settings) if isinstance(settings, str) else settings
    # First: its file may register the attack or the method that the run was trained with.
    _ = asked.named
    opened = open(source)
    if opened.said:
        note(opened.said)
    ball = opened.ball(asked.threat)
    test, index, notes = limited(opened.test, asked.limit)
    attacks = asked.attacks(ball, max(test.shape[-2:]))
    into = out or asked.folder(opened, ball, len(test))
    with opened.joined(), naming_code(asked.suite) if is_reference(asked.suite) else nullcontext():
        found = evaluation.evaluate(
            opened.model,
            test.images,
            test.labels,
            threat=ball,
            suite=attacks,
            seed=asked.seed,
            batch_size=asked.batch_size,
            independent=asked.independent,
            folder=into,
            keep=asked.keep,
            shared=ranks.world() > 1,
            progress=progress,
            index=index,
            notes=[*opened.facts, *(f"{said}; that is its index in examples.parquet" for said in notes)],
        )
    return found, into
