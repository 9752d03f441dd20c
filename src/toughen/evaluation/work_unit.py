"""The unit of an evaluation: some examples under one attack, measured and classified by the evaluator itself.

    unit = task.run(stage, rows)
    unit.outcomes, unit.images

A unit is a pure function of its examples, so that it may run at any time, on any rank, and once is enough.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack, is_minimal_norm
from toughen.attacks.neighbours import Donors
from toughen.evaluation.plan import AttackStage
from toughen.evaluation.referee import MARGINAL, Unsound, confirm, gap, measure
from toughen.losses import cross_entropy, margin
from toughen.models.batched import Batched, in_pieces, predict
from toughen.models.cost import Passes
from toughen.models.inputs import to_uint8
from toughen.models.prepared import PreparedModel, ball_of
from toughen.modes import attacking
from toughen.noise import Stream
from toughen.outcomes import CLEAN, Outcomes
from toughen.threat import Threat

DONATING = AttackSpec(name="diversified_pgd", steps=25)
"""What breaks donors again: adversarial examples are not kept between the stages of an evaluation."""


@dataclass(frozen=True, eq=False)
class UnitResult:
    """What became of some examples.

    Args:
        outcomes: a row for each.
        images: what the attack returned, (N, C, H, W); None without one.
        fools_as_uint8: whether it is misclassified and in the ball when rounded to 256 levels, (N,); where asked for.
    """

    outcomes: Outcomes
    images: Tensor | None = None
    fools_as_uint8: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Examples that were checked (see `inputs.check_examples`).

    Args:
        x: images (N, C, H, W), floats in [0, 1] or uint8.
        y: classes (N,) on the CPU.
        index: ids (N,) on the CPU.
    """

    x: Tensor
    y: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationTask:
    """What is evaluated.

    Args:
        subject: the classifier, ready to run.
        quick: a copy of it for attacks that is cheaper to run, or itself; a user's own function gets the model.
        examples: the images, with classes and ids.
        threat: the ball.
        seed: of the attacks' random draws.
        passes: the count of the model's passes, kept by `cost.counted`.
        strict: whether the referee's second verdict must be the first (see `referee.confirm`).
        as_uint8: whether to check what is left of broken examples when they are rounded to 256 levels.
    """

    subject: PreparedModel
    quick: Batched
    examples: LabelledImages
    threat: Threat
    seed: int
    passes: Passes
    strict: bool = True
    as_uint8: bool = False

    @property
    def x(self) -> Tensor:
        """The images."""
        return self.examples.x

    @property
    def index(self) -> Tensor:
        """Their ids."""
        return self.examples.index

    @property
    def models(self) -> tuple[Batched, Batched]:
        """The classifier and the copy for attacks, in pieces."""
        return self.subject.model, self.quick

    def clean(self, rows: Tensor) -> UnitResult:
        """The rows (N,) of `x` as they are."""
        x = self.subject.images(self.x[rows])
        return UnitResult(classified(self.subject, x, CLEAN, self.examples.y[rows], self.index[rows], self.seed))

    def run(self, stage: AttackStage, rows: Tensor) -> UnitResult:
        """The rows (N,) of `x` under a stage's attack."""
        x, y, ids = self.subject.images(self.x[rows]), self.examples.y[rows].to(self.subject.device), self.index[rows]
        threat = ball_of(self.threat if stage.threat is None else stage.threat, rows, self.subject.device)
        before = self.passes.example_forwards, self.passes.example_backwards
        noise = Stream(("evaluate", self.seed, stage.label), rows=ids, device=self.subject.device)
        model = self.quick if isinstance(stage.attack, AttackSpec) else self.subject.model
        given = {"threat": threat, "noise": noise}
        if stage.donors is not None:
            given["donors"] = self._donors(stage.donors, stage.label)
        x_adv = attacked(stage.attack, model, x, y, label=stage.label, **given)
        taken = self.passes.example_forwards - before[0], self.passes.example_backwards - before[1]
        anywhere = is_minimal_norm(stage.attack)
        distance, inside = measure(x_adv, x, threat, attack=stage.label, ids=ids, anywhere=anywhere)
        logits = self.subject.predict(x_adv, ids=ids, under=stage.label)
        survived = (logits.argmax(1) == y) | ~inside
        marginal = gap(logits) < MARGINAL
        broken = (~survived).nonzero().squeeze(1)
        if len(broken):
            given = {"attack": stage.label, "ids": ids[broken.to(ids.device)], "strict": self.strict}
            marginal[broken] = confirm(self.subject, x_adv[broken], y[broken], logits[broken], **given)
        outcomes = outcomes_of(
            stage.label,
            self.examples.y[rows],
            ids,
            logits,
            seed=self.seed,
            taken=taken,
            survived=survived,
            marginal=marginal,
            distance=distance,
            aside=stage.threat is not None,
        )
        return UnitResult(outcomes, x_adv, self._rounded(stage, x, x_adv, y, threat, broken, ids))

    def _donors(self, rows: Tensor, label: str) -> Donors:
        """Broken examples at these positions (M,), broken again: all that a short attack breaks of them."""
        x, y = self.subject.images(self.x[rows]), self.examples.y[rows].to(self.subject.device)
        rows_of, device = self.index[rows], self.subject.device
        noise = Stream(("evaluate", self.seed, label, "donors"), rows=rows_of, device=device)
        threat = ball_of(self.threat, rows, self.subject.device)
        x_adv = attacked(DONATING, self.quick, x, y, label=label, threat=threat, noise=noise)
        wrong = predict(self.quick, x_adv).argmax(1) != y
        return Donors(x[wrong], x_adv[wrong], y[wrong])

    def _rounded(
        self, stage: AttackStage, x: Tensor, x_adv: Tensor, y: Tensor, threat: Threat, broken: Tensor, ids: Tensor
    ) -> Tensor | None:
        if not self.as_uint8:
            return None
        fools = torch.zeros(len(x), dtype=torch.bool)
        if len(broken):
            levels = self.subject.images(to_uint8(x_adv[broken]))
            some = ids[broken.to(ids.device)]
            _, inside = measure(levels, x[broken], threat[broken], attack=stage.label, ids=some, anywhere=True)
            logits = self.subject.predict(levels, ids=some, under=stage.label)
            fools[broken.cpu()] = ((logits.argmax(1) != y[broken]) & inside).cpu()
        return fools


def classified(
    model: PreparedModel, x: Tensor, label: str, y: Tensor, ids: Tensor, seed: int, *, aside: bool = False
) -> Outcomes:
    """What becomes of images that no attack moved, by one forward pass of each.

    Args:
        model: the classifier.
        x: the images as it gets them (N, C, H, W).
        label: under which name.
        y: classes (N,) on the CPU.
        ids: of the examples (N,) on the CPU.
        seed: of the evaluation.
        aside: whether they are reported alone, beside the worst case, as corrupted images are: these have no distance.
    """
    logits = model.predict(x, ids=ids, under=label)
    return outcomes_of(
        label,
        y,
        ids,
        logits,
        seed=seed,
        taken=(len(y), 0),
        survived=logits.argmax(1).cpu() == y,
        marginal=gap(logits) < MARGINAL,
        distance=torch.full((len(y),), torch.nan if aside else 0.0, dtype=torch.float64),
        aside=aside,
    )


def outcomes_of(
    label: str,
    y: Tensor,
    ids: Tensor,
    logits: Tensor,
    *,
    seed: int,
    taken: tuple[int, int],
    survived: Tensor,
    marginal: Tensor,
    distance: Tensor,
    aside: bool,
) -> Outcomes:
    """The outcomes of a unit: these columns, and those that follow from the logits.

    Args:
        label: of the attack.
        y: classes (N,) on the CPU.
        ids: of the examples (N,) on the CPU.
        logits: (N, K) at what the attack returned.
        seed: of the evaluation.
        taken: forward and backward passes that the unit took in the attack.
        survived: see `Outcomes`; on any device, as the next two.
        marginal: see `Outcomes`.
        distance: see `Outcomes`.
        aside: see `Outcomes`.
    """
    n, there = len(y), y.to(logits.device)
    columns = {
        "survived": survived,
        "marginal": marginal,
        "distance": distance,
        "prediction": logits.argmax(1),
        "loss": cross_entropy(logits, there),
        "margin": margin(logits, there),
    }
    return Outcomes(
        attack=np.full(n, label),
        index=ids.numpy(),
        label=y.numpy(),
        forwards=shares(taken[0], n),
        backwards=shares(taken[1], n),
        seed=np.full(n, seed),
        aside=np.full(n, aside),
        **{name: column.cpu().numpy() for name, column in columns.items()},
    )


def attacked(attack: AttackSpec | Attack, model: Batched, x: Tensor, y: Tensor, *, label: str, **given: Any) -> Tensor:
    """What an attack returns, without its gradient and in the type of `x`.

    A spec's attack takes all examples at once and lets the model decide how many it runs in a pass. A function of the
    user's own gets the model itself, and as many examples as it takes in a pass.
    """
    if isinstance(attack, AttackSpec):
        return _called(attack, model, x, y, label, given)
    takes = inspect.signature(attack).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        given = {key: value for key, value in given.items() if key in takes}

    def piece(rows: slice) -> tuple[Tensor]:
        some = {key: value[rows] for key, value in given.items()}
        return (_called(attack, model.model, x[rows], y[rows], label, some),)

    return in_pieces(model, len(x), piece)[0]


def _called(
    attack: AttackSpec | Attack, model: nn.Module, x: Tensor, y: Tensor, label: str, given: dict[str, Any]
) -> Tensor:
    # Copies: an attack that writes into its input would otherwise move the image that it is measured against. The
    # context takes back whatever mode a user's own attack leaves the model in.
    with attacking(model, "eval"), torch.enable_grad():
        x_adv = attack(model, x.clone(), y.clone(), **given)
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        given_back = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise Unsound(f"attack {label!r} returned {given_back} for images of shape {tuple(x.shape)}")
    return x_adv.detach().to(x)


def shares(total: int, n: int) -> np.ndarray:
    """Whole numbers (n,) that add up to the passes of a unit and differ by at most 1, larger ones first.

    Examples that left an attack early took fewer passes than their mates, which a count of passes cannot tell apart: a
    single entry is the mean over its unit, rounded, and only sums are exact.
    """
    return np.array([total // n + (position < total % n) for position in range(n)])
