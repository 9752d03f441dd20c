"""The unit of an evaluation: some examples under one attack, measured and classified by the evaluator itself.

    unit = task.run(stage, rows)
    unit.outcomes, unit.images

A unit is a pure function of its examples, so that it may run at any time, on any rank, and once is enough.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack, is_minimal_norm
from toughen.evaluation.plan import Stage
from toughen.evaluation.referee import MARGINAL, Unsound, confirm, gap, measure, predict
from toughen.losses import cross_entropy, margin
from toughen.models.batched import Batched, in_pieces, out_of_memory
from toughen.models.cost import Passes
from toughen.modes import attacking
from toughen.noise import Stream
from toughen.outcomes import CLEAN, Outcomes
from toughen.threat import Threat


@dataclass(frozen=True, eq=False)
class UnitResult:
    """What became of some examples.

    Args:
        outcomes: a row for each.
        images: what the attack returned, (N, C, H, W).
        fools_as_uint8: whether it is misclassified and in the ball when rounded to 256 levels, (N,); where asked for.
    """

    outcomes: Outcomes
    images: Tensor
    fools_as_uint8: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EvaluationTask:
    """What is evaluated.

    Args:
        model: the classifier in inference mode, frozen, in pieces.
        quick: a copy of it for attacks that is cheaper to run, or itself; a user's own function gets the model.
        x: images (N, C, H, W), floats in [0, 1] or uint8.
        y: classes (N,) on the CPU.
        index: example ids (N,) on the CPU.
        threat: the ball.
        seed: of the attacks' random draws.
        device: where the model is.
        dtype: in which it computes.
        passes: the count of the model's passes, kept by `counting.counted`.
        strict: whether the referee's second verdict must be the first (see `verify.confirm`).
        as_uint8: whether to check what is left of broken examples when they are rounded to 256 levels.
    """

    model: Batched
    quick: Batched
    x: Tensor
    y: Tensor
    index: Tensor
    threat: Threat
    seed: int
    device: torch.device
    dtype: torch.dtype
    passes: Passes
    strict: bool = True
    as_uint8: bool = False

    def clean(self, rows: Tensor) -> UnitResult:
        """The rows (N,) of `x` as they are."""
        x, y = as_input(self.x[rows], self.device, self.dtype), self.y[rows].to(self.device)
        logits = predict(self.model, x, attack=CLEAN, ids=self.index[rows])
        survived, marginal = logits.argmax(1) == y, gap(logits) < MARGINAL
        distance = torch.zeros(len(rows), dtype=torch.float64)
        return self._unit(CLEAN, rows, x, logits, survived, marginal, distance, (len(rows), 0), aside=False)

    def run(self, stage: Stage, rows: Tensor) -> UnitResult:
        """The rows (N,) of `x` under a stage's attack."""
        x, y, ids = as_input(self.x[rows], self.device, self.dtype), self.y[rows].to(self.device), self.index[rows]
        threat = self._ball(stage, rows)
        before = self.passes.example_forwards, self.passes.example_backwards
        noise = Stream(("evaluate", self.seed, stage.label), rows=ids)
        model = self.quick if isinstance(stage.attack, AttackSpec) else self.model
        x_adv = attacked(stage.attack, model, x, y, label=stage.label, threat=threat, noise=noise)
        taken = self.passes.example_forwards - before[0], self.passes.example_backwards - before[1]
        anywhere = is_minimal_norm(stage.attack)
        distance, inside = measure(x_adv, x, threat, attack=stage.label, ids=ids, anywhere=anywhere)
        logits = predict(self.model, x_adv, attack=stage.label, ids=ids)
        survived = (logits.argmax(1) == y) | ~inside
        marginal = gap(logits) < MARGINAL
        broken = (~survived).nonzero().squeeze(1)
        if len(broken):
            marginal[broken] = confirm(
                self.model,
                x_adv[broken],
                y[broken],
                logits[broken],
                attack=stage.label,
                ids=ids[broken.to(ids.device)],
                strict=self.strict,
            )
        aside = stage.threat is not None
        unit = self._unit(stage.label, rows, x_adv, logits, survived, marginal, distance, taken, aside=aside)
        return replace(unit, fools_as_uint8=self._rounded(stage, x, x_adv, y, threat, broken, ids))

    def _ball(self, stage: Stage, rows: Tensor) -> Threat:
        ball = self.threat if stage.threat is None else stage.threat
        if not isinstance(ball.eps, Tensor):
            return ball
        some = ball[rows.to(ball.eps.device)]
        return replace(some, eps=torch.as_tensor(some.eps, device=self.device))

    def _rounded(
        self, stage: Stage, x: Tensor, x_adv: Tensor, y: Tensor, threat: Threat, broken: Tensor, ids: Tensor
    ) -> Tensor | None:
        if not self.as_uint8:
            return None
        fools = torch.zeros(len(x), dtype=torch.bool)
        if len(broken):
            levels = as_input(to_uint8(x_adv[broken]), self.device, self.dtype)
            some = ids[broken.to(ids.device)]
            _, inside = measure(levels, x[broken], threat[broken], attack=stage.label, ids=some, anywhere=True)
            logits = predict(self.model, levels, attack=stage.label, ids=some)
            fools[broken.cpu()] = ((logits.argmax(1) != y[broken]) & inside).cpu()
        return fools

    def _unit(
        self,
        label: str,
        rows: Tensor,
        images: Tensor,
        logits: Tensor,
        survived: Tensor,
        marginal: Tensor,
        distance: Tensor,
        taken: tuple[int, int],
        *,
        aside: bool,
    ) -> UnitResult:
        n, y = len(rows), self.y[rows].to(logits.device)
        columns = {
            "prediction": logits.argmax(1),
            "survived": survived,
            "distance": distance,
            "loss": cross_entropy(logits, y),
            "margin": margin(logits, y),
            "marginal": marginal,
        }
        outcomes = Outcomes(
            attack=np.full(n, label),
            index=self.index[rows].numpy(),
            label=self.y[rows].numpy(),
            forwards=shares(taken[0], n),
            backwards=shares(taken[1], n),
            seed=np.full(n, self.seed),
            aside=np.full(n, aside),
            **{name: column.cpu().numpy() for name, column in columns.items()},
        )
        return UnitResult(outcomes, images)


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


@contextmanager
def memory_explained() -> Iterator[None]:
    """Say in a sentence that memory ran out where no smaller pass is possible, or none was at fault.

    Raises:
        ValueError: EV242, in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            "EV242 Out of memory, and passes of fewer examples do not help: give a smaller chunk_size, a smaller model "
            "or more memory; finished chunks are kept where there is a folder"
        ) from error


def shares(total: int, n: int) -> np.ndarray:
    """Whole numbers (n,) that add up to the passes of a unit and differ by at most 1, larger ones first.

    Examples that left an attack early took fewer passes than their mates, which a count of passes cannot tell apart: a
    single entry is the mean over its unit, rounded, and only sums are exact.
    """
    return np.array([total // n + (position < total % n) for position in range(n)])


def placement(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Device of the model's first parameter or buffer, else of `x`; float64 where they are, else float32."""
    tensors = [*model.parameters(), *model.buffers()] or [x]
    kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return tensors[0].device, torch.float64 if kinds[:1] == [torch.float64] else torch.float32


def as_input(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Images as the model gets them. Values outside [0, 1] by rounding, which `check_images` lets pass, are clipped."""
    x_float = x.to(device).to(dtype)
    if x.dtype == torch.uint8:
        # By a tensor: CUDA turns a division by a number into a multiplication, whose last bit differs from the CPU's.
        return x_float / torch.tensor(255, dtype=dtype, device=device)
    return x_float.clamp(0, 1)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as the nearest of 256 levels."""
    return (images * 255).round().to(torch.uint8)
