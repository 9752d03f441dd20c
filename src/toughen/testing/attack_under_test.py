"""An attack as it is looked at: how it is called, in which balls, and what it leaves behind."""

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toughen.attacks.contract import Attack, is_minimal_norm
from toughen.noise import Stream
from toughen.testing import toys
from toughen.testing.promises import random_states, seed_everything
from toughen.threat import L2, Linf, Threat

Strength = Literal["gradient", "search", "none"]
"""What an attack has to break on a linear model, see `toughen.testing.check_attack`."""

BALLS: dict[str, tuple[Threat, Threat]] = {
    "linf": (Linf(8 / 255), Linf(torch.linspace(0, 0.3, 8))),
    "l2": (L2(0.5), L2(torch.linspace(0, 2, 8))),
}
"""By norm, where an attack is run: a ball with one radius for all eight images, and one with a radius for each."""


@dataclass(eq=False)
class AttackUnderTest:
    """An attack as it is looked at.

    Attributes:
        function: as users call it.
        settings: keyword arguments of every call.
        norms: in whose balls it is run.
        strength: see `check_attack`.
        runs: what it found so far in the balls, which several promises look at.
    """

    function: Attack
    settings: dict[str, Any]
    norms: tuple[str, ...]
    strength: Strength
    runs: dict[tuple[torch.dtype, Threat], Tensor] = field(default_factory=dict)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Stream | None = None) -> Tensor:
        """The examples that it finds."""
        given: dict[str, Any] = {"threat": threat} if self.takes("threat") else {}
        if noise is not None and self.takes("noise"):
            given["noise"] = noise
        return self.function(model, x, y, **given, **self.settings)

    def takes(self, argument: str) -> bool:
        """Whether the function has an argument of that name."""
        return argument in inspect.signature(self.function).parameters

    @property
    def minimal_norm(self) -> bool:
        """Whether it looks for the nearest example."""
        return is_minimal_norm(self.function)

    @property
    def balls(self) -> list[Threat]:
        """Of each norm one with a radius for all and one with a radius for each, from 0 on."""
        return [ball for norm in self.norms for ball in BALLS[norm]]

    @property
    def trains(self) -> bool:
        """Whether it has been told to move BatchNorm's statistics, or to use a batch's."""
        return self.settings.get("attack_bn", "eval") != "eval"

    @cached_property
    def footprint(self) -> dict[str, str]:
        """What it does not leave as it was, by kind: one run in each ball."""
        found: dict[str, str] = {}
        for ball in self.balls:
            found = _footprint(self, ball) | found
        return found


def _footprint(attack: AttackUnderTest, threat: Threat) -> dict[str, str]:
    model = toys.normed().train()
    # As in training: some layers in one mode and some in the other, some weights frozen, gradients in use.
    model[0].eval()  # pyright: ignore[reportIndexIssue]
    next(iter(model[4].parameters())).requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    norm = model[1]  # pyright: ignore[reportIndexIssue]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    asks = [parameter.requires_grad for parameter in model.parameters()]
    x, y = toys.images(), toys.labels()
    asking = x.clone().requires_grad_()
    given = asking.detach()
    seed_everything(1)
    random = random_states()
    attack(model, asking, y, threat)
    grads = [parameter.grad for parameter in model.parameters()]
    params = {name for name, _ in model.named_parameters()}
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
    looks: dict[str, tuple[bool, str]] = {
        "random": (random_states() == random, "it has moved a global random state"),
        "images": (torch.equal(given, x), "it has written into the images that it was given"),
        "labels": (torch.equal(y, toys.labels()), "it has written into the labels that it was given"),
        "x grad": (asking.grad is None, "it has left a gradient on the images that it was given"),
        "modes": (
            [module.training for module in model.modules()] == modes,
            "modules are in another mode than before",
        ),
        "asks": (
            [parameter.requires_grad for parameter in model.parameters()] == asks,
            "requires_grad of parameters is not what it was",
        ),
        "grads": (
            all(grad is not None and bool((grad == 7).all()) for grad in grads),
            "the gradients of parameters are not what they were",
        ),
        "weights": (not params.intersection(moved), f"parameters have moved: {', '.join(moved)}"),
        "buffers": (
            not set(moved) - params and norm.track_running_stats,
            f"buffers have moved or been switched off: {', '.join(moved) or 'track_running_stats'}",
        ),
        "hooks": (
            not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()),
            "hooks are left on the model",
        ),
    }
    if attack.settings.get("attack_bn") == "train":
        del looks["buffers"]
    return {kind: f"{said} (in the ball {threat})" for kind, (fine, said) in looks.items() if not fine}
