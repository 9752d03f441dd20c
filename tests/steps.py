"""A tiny model, batches and the barest loop, shared by the tests of training methods: all in float64."""

import torch
from torch import Tensor, nn

from toughen.data import Batch
from toughen.methods import Method, Spec, State
from toughen.noise import Stream

N, SHAPE, CLASSES = 6, (1, 8, 8), 3


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
    ).double()


def batch(number: int = 0, n: int = N) -> Batch:
    rows = torch.arange(n)
    draw = Stream(("test", number), rows)
    x = (draw.uniform(SHAPE, dtype=torch.float64) + 1) / 2
    y = draw.child("y").integers(CLASSES)
    return Batch(x=x, y=y, index=rows, noise=Stream((0, "train", number), rows, block=n), size=n, classes=CLASSES)


def spec(n: int = N) -> Spec:
    return Spec(shape=SHAPE, slots=n, examples=100, classes=CLASSES, dtype=torch.float64)


def sgd_steps(method: Method, model: nn.Module, batches: list[Batch], state: State, lr: float = 0.1) -> list[Tensor]:
    """What the loop does, in its barest form; the losses of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    seen = []
    for one in batches:
        model.train()
        for objective in method.losses(model, one, state):
            optimizer.zero_grad()
            losses = objective()
            losses.mean().backward()
            optimizer.step()
            seen.append(losses.detach())
    return seen
