"""Set-ups that make a robust accuracy worthless, and sound ones, for the audit to tell apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozen_models import images, load
from oracles import linear_problem
from toughen.models import Classifier
from toughen.models.classifier import Normalize
from toughen.noise import generator
from toughen.threat import L2, Linf, Threat

EPS = 2 / 255


@dataclass(frozen=True, eq=False)
class SetUp:
    """A model with images, labels and a ball."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat


class Around(nn.Module):
    """A model with something done to its input and its output."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def linear(seed: int = 0, *, n: int = 300, dtype: torch.dtype = torch.float32) -> SetUp:
    """The linear problem of docs/methods/black_box.md, on images of 256 levels; labels are the model's own."""
    problem = linear_problem(seed, n=n, dtype=dtype)
    return SetUp(problem.model.eval(), problem.x, problem.y, Linf(EPS))


def around(before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda z: z) -> SetUp:
    """The linear problem with something around the model; labels are what the whole then answers."""
    set_up = linear()
    model = Around(set_up.model, before, after).eval()
    return replace(set_up, model=model, y=answers(model, set_up.x))


def answers(model: nn.Module, x: Tensor) -> Tensor:
    """What a model says."""
    with torch.no_grad():
        return model(x).argmax(1)


def digits(name: str = "standard", norm: str = "linf") -> SetUp:
    """A frozen model of digits, with a few images that it classifies correctly."""
    return SetUp(*load(name, norm, n=64))


# Faulty


def nan_gradient() -> SetUp:
    """A branch that adds nothing, whose derivative is infinity times zero."""
    return around(after=lambda logits: logits + 0 * (logits - logits).sqrt())


def saturated() -> SetUp:
    return around(after=lambda logits: 1e4 * logits)


def quantised() -> SetUp:
    return around(before=lambda x: (x * 8).round() / 8)


class Straight(torch.autograd.Function):
    """Rounding to 8 levels, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


def quantised_with_stand_in() -> SetUp:
    return around(before=lambda x: Straight.apply(x))


class Mislead(torch.autograd.Function):
    """The identity with the gradient of something else."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0].flip(3)


def misleading_gradient() -> SetUp:
    return around(before=lambda x: Mislead.apply(x))


def sign_activations() -> SetUp:
    """A hidden layer of signs under a linear layer fitted to the digits."""
    x, y = images()
    weight = torch.randn(512, 784, generator=generator("zoo", "sign"))

    def features(x: Tensor) -> Tensor:
        return (x.flatten(1) @ weight.T - (0.13 * weight.sum(1))).sign()

    hidden = features(x)
    top = torch.linalg.lstsq(
        torch.cat([hidden, 20 * torch.eye(512)]), torch.cat([F.one_hot(y, 10).float(), torch.zeros(512, 10)])
    ).solution
    net = nn.Linear(512, 10)
    with torch.no_grad():
        net.weight.copy_(20 * top.T)
        net.bias.zero_()
    model = Around(net, features).eval()
    return SetUp(model, x, answers(model, x), Linf(0.1))


def detached() -> SetUp:
    """Images go through numpy: autograd does not see that the logits depend on them."""
    return around(before=lambda x: torch.from_numpy(x.detach().numpy().copy()))


def softmax() -> SetUp:
    return around(after=lambda logits: logits.softmax(1))


def log_softmax() -> SetUp:
    return around(after=lambda logits: logits.log_softmax(1))


def half_precision() -> SetUp:
    """The linear problem, ten times as sure. Its backward pass goes through float16, and underflows at a lead of 17."""
    return around(after=lambda logits: (10 * logits).half().float())


def random_noise() -> SetUp:
    return around(before=lambda x: x + 0.1 * torch.randn_like(x))


def functional_dropout() -> SetUp:
    return around(before=lambda x: F.dropout(x, 0.2, training=True))


def train_mode() -> SetUp:
    set_up = digits()
    return replace(set_up, model=set_up.model.train())


def dropout_on() -> SetUp:
    set_up = linear()
    return replace(set_up, model=nn.Sequential(nn.Dropout(0.3), set_up.model).train())


def batch_statistics() -> SetUp:
    set_up = digits()
    for module in set_up.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return set_up


def of_255() -> SetUp:
    set_up = digits()
    return replace(set_up, x=set_up.x * 255)


def radius_of_255() -> SetUp:
    return replace(linear(), threat=Linf(8.0))


def centred() -> SetUp:
    set_up = digits()
    return replace(set_up, x=(set_up.x - 0.5) / 0.5)


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def normalised(times: int, *, own: bool) -> SetUp:
    """The linear net on normalised images with labels of its own, then normalised 0, 1 or 2 times."""
    set_up = linear()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
    meant = Classifier(set_up.model, mean=MEAN, std=STD)
    y = answers(meant, set_up.x)
    if own:
        layers = [Normalize(MEAN, STD) for _ in range(times)]
        return replace(set_up, model=nn.Sequential(*layers, set_up.model).eval(), y=y)

    def before(x: Tensor) -> Tensor:
        for _ in range(times):
            x = (x - mean) / std
        return x

    return replace(set_up, model=Around(set_up.model, before).eval(), y=y)


def bgr() -> SetUp:
    set_up = linear()
    return replace(set_up, model=Around(set_up.model, lambda x: x.flip(1)).eval())


def constant() -> SetUp:
    """Weights that were never loaded, of a last layer that starts from zero."""
    set_up = linear()
    model = Around(set_up.model, after=lambda logits: 0 * logits + torch.arange(10.0)).eval()
    return replace(set_up, model=model, y=answers(model, set_up.x))


def shifted_labels() -> SetUp:
    set_up = digits()
    return replace(set_up, y=(set_up.y + 1) % 10)


def permuted_labels() -> SetUp:
    set_up = digits()
    order = torch.tensor([0, 2, 1, 4, 3, 7, 5, 6, 9, 8])
    return replace(set_up, y=order[set_up.y])


class Purified(nn.Module):
    """A model that first takes some steps downhill on its own entropy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            with torch.enable_grad():
                image = x.detach().requires_grad_()
                entropy = -(self.net(image).softmax(1) * self.net(image).log_softmax(1)).sum()
                (grad,) = torch.autograd.grad(entropy, image)
            x = (x - 0.01 * grad.sign()).clamp(0, 1)
        return self.net(x)


def purified() -> SetUp:
    set_up = linear()
    return replace(set_up, model=Purified(set_up.model).eval())


class Detector(nn.Module):
    """A model that answers with a constant unless the image has 256 levels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        off = (x * 255 - (x * 255).round()).abs().flatten(1).amax(1)
        rejected = torch.zeros(10)
        return torch.where((off > 1e-3).unsqueeze(1), rejected, self.net(x))


def detector() -> SetUp:
    set_up = digits()
    return replace(set_up, model=Detector(set_up.model).eval())


class OnlyOnGrid(torch.autograd.Function):
    """The identity, with a gradient at images of 256 levels alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.on = (x * 255 - (x * 255).round()).abs().flatten(1).amax(1) < 1e-3
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.on.reshape(-1, 1, 1, 1)


def gradient_on_grid() -> SetUp:
    set_up = digits()
    return replace(set_up, model=Around(set_up.model, lambda x: OnlyOnGrid.apply(x)).eval())


class Decoy(nn.Module):
    """Decides by the brightest quarter, which autograd does not see, and shows it a checkerboard instead."""

    def forward(self, x: Tensor) -> Tensor:
        quarters = F.avg_pool2d(x, 8).flatten(1)
        steps = torch.arange(16)
        board = (steps.unsqueeze(0) + steps.unsqueeze(1)) % 2 * 2.0 - 1
        seen = (x * board).flatten(1).mean(1, keepdim=True) * torch.tensor([1.0, -1.0, 1.0, -1.0])
        return 10 * F.one_hot(quarters.detach().argmax(1), 4) + seen


def decoy() -> SetUp:
    y = torch.arange(128) % 4
    x = 0.3 + 0.1 * torch.rand(128, 1, 16, 16, generator=generator("zoo", "decoy"))
    for quarter in range(4):
        row, column = divmod(quarter, 2)
        x[y == quarter, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 0.3
    return SetUp(Decoy().eval(), x, y, Linf(8 / 255))


class Lopsided(nn.Module):
    """Two classes: the label's logit is far ahead and steep, the other's leads nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        bright, sides = x.flatten(1).mean(1), (x[..., :8] - x[..., 8:]).flatten(1).mean(1)
        return torch.stack([20 * sides, 25 + 400 * (bright - 0.5)], 1)


def lopsided() -> SetUp:
    x = torch.rand(128, 1, 16, 16, generator=generator("zoo", "lopsided"))
    x = 0.5 + 0.4 * (x - x.mean((1, 2, 3), keepdim=True))
    return SetUp(Lopsided().eval(), x, torch.ones(128, dtype=torch.long), Linf(0.1))


FAULTY: dict[str, tuple[Callable[[], SetUp], Sequence[str]]] = {
    "nan gradient": (nan_gradient, ["EV202"]),
    "saturated": (saturated, ["EV205"]),
    "quantised": (quantised, ["EV206"]),
    "quantised with stand-in": (quantised_with_stand_in, ["EV206"]),
    "misleading gradient": (misleading_gradient, ["EV207"]),
    "sign activations": (sign_activations, ["EV206"]),
    "detached": (detached, ["EV201"]),
    "softmax": (softmax, ["EV224"]),
    "half precision": (half_precision, ["EV204"]),
    "random noise": (random_noise, ["EV212"]),
    "functional dropout": (functional_dropout, ["EV212"]),
    "train mode": (train_mode, ["EV211"]),
    "dropout on": (dropout_on, ["EV211"]),
    "batch statistics": (batch_statistics, ["EV213"]),
    "0..255": (of_255, ["EV221"]),
    "radius of 255": (radius_of_255, ["EV221"]),
    "centred": (centred, ["EV221"]),
    "normalised twice": (lambda: normalised(2, own=True), ["EV222"]),
    "normalised twice by hand": (lambda: normalised(2, own=False), ["EV222"]),
    "not normalised": (lambda: normalised(0, own=False), ["EV222"]),
    "red and blue exchanged": (bgr, ["EV228"]),
    "constant": (constant, ["EV209"]),
    "labels + 1": (shifted_labels, ["EV223"]),
    "labels permuted": (permuted_labels, ["EV223"]),
    "purified": (purified, ["EV214"]),
    "detector": (detector, ["EV208"]),
    "gradient on the grid": (gradient_on_grid, ["EV281", "EV282"]),
    "decoy": (decoy, ["EV284"]),
    "lopsided": (lopsided, ["EV285"]),
}

NOTED: dict[str, tuple[Callable[[], SetUp], Sequence[str]]] = {"log-softmax": (log_softmax, ["EV225"])}
"""Set-ups whose figures are right, and of which a reader should know something."""

SOUND: dict[str, Callable[[], SetUp]] = {
    "linear 0": lambda: linear(0),
    "linear 1": lambda: linear(1),
    "linear, training flag": lambda: SetUp(
        linear_problem(2).model, linear_problem(2).x, linear_problem(2).y, Linf(EPS)
    ),
    "float64": lambda: linear(dtype=torch.float64),
    "L2": lambda: replace(linear(), threat=L2(0.3)),
    "radii": lambda: replace(linear(), threat=Linf(torch.linspace(0, EPS, 300))),
    "normalised once": lambda: normalised(1, own=True),
    **{
        f"{name} {norm}": lambda name=name, norm=norm: digits(name, norm)
        for name in ("linear", "standard", "robust")
        for norm in ("linf", "l2")
    },
}
