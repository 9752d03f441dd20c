"""Small models and images that several tests of evaluation share."""

import copy

import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.evaluation import Evaluation

EPS = 0.05
CLEAN_COUNT = 40


class Linear(nn.Module):
    """Two classes with logits (0, <w, x> + b)."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w = nn.Parameter(w)
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def spec(name: str, **settings: object) -> AttackSpec:
    return AttackSpec.model_validate({"name": name, **settings})


def linear(n: int = 200, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """A linear model, images that a step of EPS keeps within [0, 1], and labels of which a tenth are wrong."""
    draw = torch.Generator().manual_seed(seed)
    x = (0.2 + 0.6 * torch.rand(n, 1, 4, 4, generator=draw, dtype=torch.float64)).to(dtype)
    w = torch.randn(16, generator=draw, dtype=torch.float64).to(dtype)
    model = Linear(w, -float((x.flatten(1) @ w).mean()))
    y = model(x).argmax(1)
    wrong = torch.rand(n, generator=draw) < 0.1
    return model, x, torch.where(wrong, 1 - y, y)


def network(*, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
        bn = net[1]
        assert isinstance(bn, nn.BatchNorm2d)
        bn.running_mean = torch.randn(8) * 0.2
        bn.running_var = torch.rand(8) + 0.5
    return net.to(dtype)


def photographs(n: int = CLEAN_COUNT) -> Tensor:
    return torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def labels(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says in inference mode."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x).argmax(1)


def rows(evaluation: Evaluation) -> dict[tuple[str, int], tuple[int, bool, float, float]]:
    o = evaluation.outcomes
    values = zip(o.prediction.tolist(), o.survived.tolist(), o.distance.tolist(), o.loss.tolist(), strict=True)
    return dict(zip(zip(o.attack.tolist(), o.index.tolist(), strict=True), values, strict=True))
