"""ReLU networks small enough for an exact answer: which images can be broken inside the ball at all.

    highest_margin(layers_of(model), x, y, eps)       # over the Linf ball and [0, 1], by milp

A perceptron with ReLUs is piecewise linear, so the point of the ball with the highest logit of a class over the label's
solves a mixed-integer linear program (Tjeng et al. 2019): a binary variable for each unit whose sign is not fixed by
the bounds on its input. scipy's `milp` (HiGHS) proves the answer.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.evaluation import evaluate
from toughen.evaluation.suites import find
from toughen.threat import Threat
from zoo_models import PGD, Member

IMAGES, AMONG = 20, 300
SUITES = ("autoattack", "adaptive", "exhaustive")


def _member(width: int, layers: int, eps: float, attack: AttackSpec | None, train_eps: float) -> Member:
    return Member("digits-7x7", eps, width=width, layers=layers, attack=attack, train_eps=train_eps, epochs=20)


PROBLEMS: dict[str, Member] = {
    "exact-natural": _member(24, 1, 0.04, None, 0.0),
    "exact-pgd": _member(24, 1, 0.1, PGD, 0.1),
    "exact-fgsm-large": _member(24, 1, 0.07, AttackSpec(name="fgsm"), 0.3),
    "exact-deep": _member(12, 2, 0.1, PGD, 0.1),
}
"""Perceptrons of a few units, trained on digits of 7 x 7 pixels, and their balls."""


@dataclass(frozen=True)
class Verdicts:
    """What was found of the images that a short attack came nearest to breaking.

    Args:
        ids: of the images.
        highest: the highest margins in their balls.
        broken: by each suite, ids.
    """

    ids: list[int]
    highest: list[float]
    broken: dict[str, set[int]]

    @property
    def breakable(self) -> set[int]:
        """Those that some point of the ball breaks."""
        return {i for i, margin in zip(self.ids, self.highest, strict=True) if margin > 0}


def verdicts(name: str, cache: Path, *, report: bool) -> Verdicts | None:
    """The exact answer, and that of each suite; None where they are not measured yet, for a report.

    AutoAttack and `adaptive` are run on all images among which the hardest were chosen, as `adaptive` attacks shares of
    them; `exhaustive`, which does not, on the hardest alone.
    """
    member = PROBLEMS[name]
    settings = repr([asdict(member), *(find(suite, member.threat) for suite in SUITES)])
    path = cache / "evaluations" / f"{name}-{sha256(settings.encode()).hexdigest()[:12]}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        return Verdicts(**stored | {"broken": {suite: set(ids) for suite, ids in stored["broken"].items()}})
    if report:
        return None
    model, x, y = member.open(name, cache, None, AMONG)
    assert isinstance(member.threat.eps, float)
    ids = hardest(model, x, y, member.threat)
    layers = layers_of(model)
    points = x[ids].double().flatten(1).numpy()
    highest = [
        highest_margin(layers, point, int(label), member.threat.eps)[0]
        for point, label in zip(points, y[ids], strict=True)
    ]
    broken = {}
    for suite in SUITES:
        rows = ids if suite == "exhaustive" else torch.arange(len(y))
        found = evaluate(model, x[rows], y[rows], threat=member.threat, suite=suite, index=rows, audit=False)
        broken[suite] = set(found.outcomes.index[~found.outcomes.survived].tolist()) & set(ids.tolist())
    text = json.dumps({"ids": ids.tolist(), "highest": highest, "broken": {key: sorted(broken[key]) for key in broken}})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return Verdicts(ids.tolist(), highest, broken)


def hardest(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Positions of the images that the suite `quick` came nearest to breaking and did not break."""
    table = evaluate(model, x, y, threat=threat, suite="quick", audit=False).outcomes
    best: dict[int, float] = {}
    for row, margin in zip(table.index.tolist(), table.margin.tolist(), strict=True):
        best[row] = max(margin, best.get(row, -np.inf))
    for row in table.index[~table.survived].tolist():
        best.pop(row, None)
    return torch.tensor(sorted(sorted(best, key=lambda row: -best[row])[:IMAGES]), dtype=torch.int64)


Layer = tuple[np.ndarray, np.ndarray]


def layers_of(model: nn.Module) -> list[Layer]:
    """Weights and biases of the linear layers, in float64."""
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in found]


def highest_margin(layers: list[Layer], x: np.ndarray, y: int, eps: float) -> tuple[float, np.ndarray]:
    """The highest margin over the ball around x (D,) and [0, 1], and a point (D,) that has it."""
    low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
    best, where = -np.inf, x
    last_weight, last_bias = layers[-1]
    rows, bounds, columns = _relaxed(layers[:-1], low, high)
    for target in range(len(last_bias)):
        if target == y:
            continue
        cost = np.zeros(len(bounds[0]))
        cost[columns] = -(last_weight[target] - last_weight[y])
        shift = last_bias[target] - last_bias[y]
        integral = np.zeros(len(cost))
        integral[rows.binaries] = 1
        found = milp(
            cost,
            integrality=integral,
            bounds=Bounds(*bounds),  # pyright: ignore[reportArgumentType]
            constraints=LinearConstraint(rows.matrix, -np.inf, rows.above),  # pyright: ignore[reportArgumentType]
            options={"mip_rel_gap": 0.0},
        )
        if not found.success:
            raise RuntimeError(f"milp: {found.message}")
        if shift - found.fun > best:
            best, where = float(shift - found.fun), np.clip(found.x[: len(x)], low, high)
    return best, where


@dataclass
class _Rows:
    """matrix v <= above, with these entries of v binary."""

    matrix: np.ndarray
    above: np.ndarray
    binaries: list[int]


def _relaxed(
    layers: list[Layer], low: np.ndarray, high: np.ndarray
) -> tuple[_Rows, tuple[np.ndarray, np.ndarray], slice]:
    """The hidden layers as constraints on (x, units, binaries): rows, bounds, and where the last layer's units are.

    For a unit a = relu(z), l <= z <= u: a >= z, a >= 0, a <= z - l (1 - d), a <= u d, with d 0 or 1.
    """
    sizes = [len(low), *(len(bias) for _, bias in layers)]
    starts = np.cumsum([0, *sizes])
    units = sum(sizes[1:])
    total = starts[-1] + units
    lower, upper = np.zeros(total), np.ones(total)
    lower[: len(low)], upper[: len(low)] = low, high
    matrix: list[np.ndarray] = []
    above: list[float] = []
    for number, (weight, bias) in enumerate(layers):
        inputs = slice(starts[number], starts[number + 1])
        centre, radius = (upper[inputs] + lower[inputs]) / 2, (upper[inputs] - lower[inputs]) / 2
        middle, reach = weight @ centre + bias, np.abs(weight) @ radius
        for unit in range(len(bias)):
            at = starts[number + 1] + unit
            d = at + units
            least, most = middle[unit] - reach[unit], middle[unit] + reach[unit]
            lower[at], upper[at] = max(least, 0.0), max(most, 0.0)
            if least >= 0 or most <= 0:
                lower[d] = upper[d] = float(most > 0)
            z = np.zeros(total)
            z[inputs] = weight[unit]
            a, switch = np.zeros(total), np.zeros(total)
            a[at], switch[d] = 1.0, 1.0
            matrix += [z - a, a - z - least * switch, a - most * switch] if most > 0 else []
            above += [-bias[unit], bias[unit] - least, 0.0] if most > 0 else []
    binaries = list(range(starts[-1], total))
    return _Rows(np.array(matrix), np.array(above), binaries), (lower, upper), slice(starts[-2], starts[-1])
