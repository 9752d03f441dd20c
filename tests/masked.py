"""Models that hide their gradients, or whose answer is not a function of the image, as strangers build them.

Each stands around the linear problem, whose robust accuracy is known: masks that change no answer leave the truth as it
is, and steps of single pixels take the better of the levels within reach.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import EPS, LinearProblem, linear_problem
from toughen.attacks import AttackSpec
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.audit.audit import audit
from toughen.evaluation.audit.findings import Audit
from toughen.threat import Linf
from zoo import Around, answers

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Masked:
    """A masked model.

    Attributes:
        model: in inference mode.
        x: images (N, 3, 16, 16).
        y: what it answers to them (N,).
        truth: its robust accuracy in `BALL`, or, where `before` is no function of each pixel, that without it.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    truth: float


def masked(
    before: Map | nn.Module = lambda x: x,
    after: Map = lambda z: z,
    steps: Map | None = None,
    jumps: Sequence[float] = (),
    n: int = 128,
) -> Masked:
    """Something around the linear model.

    Args:
        before: what is done to the images.
        after: what is done to the logits.
        steps: where `before` changes the images: a function of each pixel by itself, which it computes.
        jumps: where that is neither rising nor falling: the pixels at which it jumps; between them it does one of both.
        n: number of images.
    """
    problem = linear_problem(0, n=n)
    model = Around(problem.model, before, after).eval()
    own = problem.model if steps is None else Around(problem.model, lambda x: steps(x).to(x))
    y = answers(own.eval(), problem.x)
    return Masked(model, problem.x, y, _truth(problem, y, steps or (lambda x: x), jumps))


def _truth(problem: LinearProblem, y: Tensor, steps: Map, jumps: Sequence[float]) -> float:
    x = problem.x.double()
    least, most = ((x + side * EPS).clamp(0, 1) for side in (-1, 1))
    near = [min(max(jump + side * 1e-7, 0), 1) for jump in jumps for side in (-1, 1)]
    reached = torch.stack([steps(value) for value in (least, most, *(least.clamp(min=j).minimum(most) for j in near))])
    low, high = (value.flatten(1).unsqueeze(1) for value in (reached.amin(0).double(), reached.amax(0).double()))
    weight, bias = problem.model.weight.detach().double(), problem.model.bias.detach().double()
    toward = weight.unsqueeze(0) - weight[y].unsqueeze(1)
    margins = torch.maximum(low * toward, high * toward).sum(2) + bias - bias[y].unsqueeze(1)
    return 1 - (margins.scatter(1, y.unsqueeze(1), -torch.inf).amax(1) > 0).double().mean().item()


def backwards(change: Callable[[Tensor], Tensor | None], forwards: Map = lambda x: x.clone()) -> Map:
    """A function with a derivative of its own."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return forwards(x)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return change(grads[0])

    return Own.apply


class Memory(nn.Module):
    """Answers a question that is near an earlier one as it answered that."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = torch.zeros(0, 768)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.detach().flatten(1)
        for image in flat:
            if not bool((self.asked - image).abs().amax(1).le(0.02).any()):
                self.asked = torch.cat([self.asked, image.unsqueeze(0)])
        nearest = torch.cdist(flat, self.asked, p=torch.inf).argmin(1)
        return x + (self.asked[nearest].reshape(x.shape) - x).detach()


class Suspicious(nn.Module):
    """Shifts its logits where it was asked nearly the same before."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = torch.zeros(0, 768)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.detach().flatten(1)
        near = torch.cdist(flat, self.asked).lt(0.5).any(1) if len(self.asked) else torch.zeros(len(x)).bool()
        self.asked = torch.cat([self.asked, flat])
        return torch.where(near.reshape(-1, 1, 1, 1), x.flip(2), x)


def seeded(x: Tensor) -> Tensor:
    return x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def reseeded(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x + 0.05 * torch.randn_like(x)


def hashed(x: Tensor) -> Tensor:
    noise = [
        torch.randn(image.shape, generator=torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes())))
        for image in x.detach()
    ]
    return x + 0.05 * torch.stack(noise)


def of_the_batch(x: Tensor) -> Tensor:
    return x + 0.05 * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(zlib.crc32(x.detach().numpy().tobytes()))
    )


def resized(x: Tensor) -> Tensor:
    side = 16 + int(torch.randint(1, 5, ()))
    return F.interpolate(F.interpolate(x, size=side), size=16)


def blocks() -> Tensor:
    """The discrete cosine transform of 8 x 8."""
    k = torch.arange(8.0)
    basis = torch.cos(torch.pi * (2 * k.unsqueeze(0) + 1) * k.unsqueeze(1) / 16) / 2
    basis[0] /= 2**0.5
    return basis


def jpeg(x: Tensor) -> Tensor:
    """What JPEG does to a channel: blocks of 8 x 8, their cosine transform in whole steps, and back."""
    basis, n = blocks(), len(x)
    pieces = x.reshape(n, 3, 2, 8, 2, 8).transpose(3, 4)
    coefficients = (basis @ pieces @ basis.T * 16).round() / 16
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(x.shape)


LEVELS = torch.linspace(0, 1, 17)[1:-1]


def thermometer(x: Tensor) -> Tensor:
    return (x.unsqueeze(-1) > LEVELS.to(x)).float().mean(-1)


def k_winners(x: Tensor) -> Tensor:
    weight = torch.randn(512, 768, generator=torch.Generator().manual_seed(1)) / 28
    h = (x.flatten(1) - 0.5) @ weight.T
    kept = h.topk(64, 1).values[:, -1:]
    return torch.where(h >= kept, h, 0.0) @ weight / 4


def shattered(x: Tensor) -> Tensor:
    return x + (3000 * x).sin() / 1000


def hump(x: Tensor) -> Tensor:
    return x + 0.5 * (x.gt(0.25) & x.lt(0.75))


def clipped_probabilities(z: Tensor) -> Tensor:
    p = (4 * z).softmax(1).clamp(1e-7, 1 - 1e-7)
    return (p / p.sum(1, keepdim=True)).log()


def zero(grad: Tensor) -> Tensor:
    return grad * 0


MASKS: dict[str, Callable[[], Masked]] = {
    "rounded to 8 levels": lambda: masked(lambda x: (x * 8).round() / 8, steps=lambda x: (x * 8).round() / 8),
    "bits by integers": lambda: masked(
        lambda x: (x * 15).to(torch.uint8).float() / 15, steps=lambda x: (x * 15).floor() / 15
    ),
    "thresholded by a comparison": lambda: masked(lambda x: (x > 0.5).float(), steps=lambda x: (x > 0.5).double()),
    "thresholded by where": lambda: masked(
        lambda x: torch.where(x >= 0.5, 1.0, 0.25), steps=lambda x: 0.25 + 0.75 * (x >= 0.5).double()
    ),
    "a mask of comparisons": lambda: masked(hump, steps=hump, jumps=(0.25, 0.75)),
    "signs": lambda: masked(lambda x: (x - 0.5).sign(), steps=lambda x: (x - 0.5).sign()),
    "thermometer": lambda: masked(thermometer, steps=lambda x: (x.unsqueeze(-1) > LEVELS.to(x)).double().mean(-1)),
    "JPEG": lambda: masked(jpeg),
    "JPEG with the identity's gradient": lambda: masked(backwards(lambda grad: grad, jpeg)),
    "negated gradient": lambda: masked(backwards(lambda grad: -grad)),
    "negated by detach": lambda: masked(lambda x: 2 * x.detach() - x),
    "negated by a hook": lambda: masked(_hooked),
    "flipped gradient": lambda: masked(backwards(lambda grad: grad.flip(3))),
    "gradient of zero": lambda: masked(backwards(zero)),
    "gradient of nothing": lambda: masked(backwards(lambda grad: None)),
    "gradient zero by chance": lambda: masked(backwards(lambda grad: grad * (torch.rand(len(grad), 1, 1, 1) < 0.3))),
    "pixels of the gradient zero by chance": lambda: masked(
        backwards(lambda grad: grad * (torch.rand_like(grad) < 0.02))
    ),
    "random gradient": lambda: masked(backwards(torch.randn_like)),
    "tiny gradient": lambda: masked(backwards(lambda grad: grad * 1e-44)),
    "broken straight-through": lambda: masked(
        backwards(lambda grad: grad.mean((2, 3), keepdim=True).expand_as(grad), lambda x: (x * 8).round() / 8),
        steps=lambda x: (x * 8).round() / 8,
    ),
    "detached whole": lambda: masked(lambda x: x.detach()),
    "detached half": lambda: masked(lambda x: torch.cat([x[:, :, :8].detach(), x[:, :, 8:]], 2)),
    "detached nearly all": lambda: masked(lambda x: x.detach() + 0.01 * (x.flip(2) - x.flip(2).detach())),
    "saturated": lambda: masked(after=lambda z: 1e4 * z),
    "saturated in float16": lambda: masked(after=lambda z: (30 * z).half().float()),
    "softmax": lambda: masked(after=lambda z: z.softmax(1)),
    "cold softmax": lambda: masked(after=lambda z: (100 * z).softmax(1)),
    "logarithm of a cold softmax": lambda: masked(after=lambda z: (1e4 * z).log_softmax(1)),
    "clipped probabilities": lambda: masked(after=clipped_probabilities),
    "squashed logits": lambda: masked(after=lambda z: (1e3 * (z - z.amax(1, keepdim=True))).tanh()),
    "rounded logits": lambda: masked(after=lambda z: (z * 4).round() / 4 + 1e-3 * z.detach()),
    "hard labels": lambda: masked(after=lambda z: 10.0 * F.one_hot(z.argmax(1), 10)),
    "clipped logits": lambda: masked(after=lambda z: z.clamp(max=0) + 1e-4 * z.detach()),
    "NaN in the gradient": lambda: masked(after=lambda z: z + 0 * (z - z).sqrt()),
    "random noise": lambda: masked(lambda x: x + 0.05 * torch.randn_like(x)),
    "dropout": lambda: masked(lambda x: F.dropout(x, 0.2, training=True)),
    "random size": lambda: masked(resized),
    "seeded noise": lambda: masked(seeded),
    "reseeded noise": lambda: masked(reseeded),
    "noise by a hash of the image": lambda: masked(hashed),
    "noise by a hash of the batch": lambda: masked(of_the_batch),
    "memory of earlier questions": lambda: masked(Memory(), n=32),
    "suspicion of earlier questions": lambda: masked(Suspicious(), n=32),
    "early exit": lambda: masked(after=lambda z: torch.where(z.amax(1, keepdim=True) > 3, z.detach() * 100, z)),
    "k winners": lambda: masked(k_winners),
    "shattered": lambda: masked(shattered),
    "detector": lambda: masked(after=lambda z: torch.where(z.topk(2, 1).values.diff(dim=1).abs() < 0.5, 0.0, z)),
}


def _hooked(x: Tensor) -> Tensor:
    h = x * 1.0
    if h.requires_grad:
        h.register_hook(lambda grad: -grad)
    return h


BALL = Linf(EPS)

# Without a gradient: attacks that follow one are refused.
BLIND = ("bits by integers", "thresholded by a comparison", "thermometer", "detached whole", "hard labels")

QUICK = (
    *("rounded to 8 levels", "thresholded by a comparison", "a mask of comparisons", "thermometer", "negated gradient"),
    *("negated by detach", "negated by a hook", "broken straight-through", "detached half", "cold softmax"),
    *("seeded noise", "noise by a hash of the image", "memory of earlier questions", "shattered", "squashed logits"),
    *("logarithm of a cold softmax", "hard labels", "gradient zero by chance"),
)
"""Masks that the tests try; `make faults` tries all."""

SHORT = {
    "apgd-ce": AttackSpec(name="apgd", steps=5),
    "apgd-t": AttackSpec.model_validate({"name": "apgd_targeted", "steps": 5, "targets": 3}),
    "fab-t": AttackSpec.model_validate({"name": "fab", "steps": 5, "targets": 3}),
    "square": AttackSpec.model_validate({"name": "square", "queries": 30}),
}
"""AutoAttack, short."""


def evaluated(name: str, suite: Any = None) -> tuple[Masked, Evaluation]:
    torch.manual_seed(0)
    found = MASKS[name]()
    without = name in BLIND or name in ("thresholded by where", "gradient of nothing")
    suite = suite or ({"square": AttackSpec(name="square", queries=50)} if without else "pgd-20")
    return found, evaluate(found.model, found.x, found.y, threat=BALL, suite=suite, batch_size=128)


@cache
def audited(name: str) -> Audit:
    """The audit of a mask, without an evaluation."""
    torch.manual_seed(0)
    found = MASKS[name]()
    return audit(found.model, found.x, found.y, threat=BALL)


def texts(found: Audit) -> str:
    return "\n".join(map(str, found.findings))
