"""Threat models: the sets of perturbations that an adversary may choose from.

`Linf(eps)` and `L2(eps)` are the balls {delta : ||delta|| <= eps} of Madry et al. 2018, and hold all that an attack
must know of a norm: how large a perturbation is, the nearest allowed one, a random one, and the direction of steepest
ascent.

    threat = Linf(8 / 255)                      # or parse("linf:8/255"); eps may be a tensor (N,), one radius each
    delta = threat.project(delta + step_size * threat.steepest(grad))
    threat.size(delta)                          # (N,), at most 8/255
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from pydantic_core import core_schema
from torch import Tensor

from toughen.devices import sent
from toughen.noise import Stream
from toughen.settings import format_number, parse_number, shown

Radius = float | Tensor


def per_example(value: Radius, like: Tensor) -> Radius:
    """A radius or step size that broadcasts over `like` (N, ...): a float as it is, a tensor (N,) as (N, 1, ...)."""
    return broadcastable(value.to(like), like) if isinstance(value, Tensor) and value.ndim else value


def of_each(value: Radius, like: Tensor) -> Tensor:
    """A radius or step size of each example, (N,), with the type and device of `like` (N, ...)."""
    one = value.to(like) if isinstance(value, Tensor) else like.new_full((), value)
    return one.expand(len(like))


def broadcastable(values: Tensor, like: Tensor) -> Tensor:
    """One value per example, (N,) as (N, 1, ...), so that they broadcast over `like` (N, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def row_sum(values: Tensor) -> Tensor:
    """Sum over each example, (N, ...) -> (N,), with the same bits in every batch.

    Several threads add up a long row that is alone in parts of their own, and so in another order than one of many.
    """
    flat = values.flatten(1)
    return (flat.expand(2, -1) if len(flat) == 1 else flat).sum(1)[: len(flat)]


def safe_norm(delta: Tensor) -> Tensor:
    """Euclidean norm per example, (N,); scaled by the largest entry first, so that tiny and huge values survive."""
    flat = delta.flatten(1)
    largest = flat.abs().amax(1, keepdim=True) if flat.shape[1] else flat.new_zeros((len(flat), 1))
    scale = torch.where(largest > 0, largest, 1.0)
    return (flat / scale).norm(dim=1) * scale.squeeze(1)


@dataclass(frozen=True, eq=False)
class Threat:
    """A ball of radius `eps` around the clean image, in pixel units of [0, 1].

    Args:
        eps: the radius, a float >= 0 or a tensor (N,) with one radius per example.

    Raises:
        ValueError: for a negative or non-finite radius.
    """

    eps: Radius
    norm: ClassVar[str]

    def __post_init__(self):
        if isinstance(self.eps, Tensor):
            if self.eps.ndim > 1:
                raise ValueError(f"eps has shape {tuple(self.eps.shape)}; give a number or a tensor (N,)")
            sound = bool((torch.isfinite(self.eps) & (self.eps >= 0)).all())
        else:
            object.__setattr__(self, "eps", float(self.eps))
            sound = math.isfinite(self.eps) and self.eps >= 0
        if not sound:
            raise ValueError(f"eps is {self.eps}; it must be finite and not negative, like {self.norm}:8/255")

    def __str__(self) -> str:
        return f"{self.norm}:{'per-example' if isinstance(self.eps, Tensor) else format_number(self.eps)}"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or vars(self).keys() != vars(other).keys():
            return False
        return all(_equal(value, vars(other)[name]) for name, value in vars(self).items())

    def __hash__(self) -> int:
        return hash((self.norm, str(self)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        """Recipes read and write a threat model as text."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, Threat) else parse(str(value)),
            serialization=core_schema.to_string_ser_schema(),
        )

    def __getitem__(self, index: slice | Tensor) -> Self:
        """The threat model of some of the examples."""
        per_image = isinstance(self.eps, Tensor) and self.eps.ndim == 1
        return self.of_radius(self.eps[index]) if per_image else self  # pyright: ignore[reportIndexIssue]

    def on(self, device: torch.device | str) -> Self:
        """The same ball with its radii, where they are a tensor, on a device."""
        return self.of_radius(sent(self.eps, device)) if isinstance(self.eps, Tensor) else self

    def of_radius(self, eps: Tensor) -> Self:
        """The ball of the same norm with other radii (N,), unchecked: looking at them would make the device wait."""
        ball = object.__new__(type(self))
        object.__setattr__(ball, "eps", eps)
        return ball

    def scaled(self, factor: float) -> Self:
        """The same ball with `factor` times the radius (Gowal et al. 2020, section 4.2.2, train at 1.1 and 1.2)."""
        return type(self)(self.eps * factor)

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation: (N, ...) -> (N,)."""
        raise NotImplementedError

    def project(self, delta: Tensor) -> Tensor:
        """argmin over ||p|| <= eps of ||p - delta||_2, per example: (N, ...) -> (N, ...)."""
        raise NotImplementedError

    def sample(self, x: Tensor, noise: Stream) -> Tensor:
        """A perturbation drawn uniformly from the ball, of the shape, type and device of `x` (N, ...)."""
        raise NotImplementedError

    def steepest(self, grad: Tensor) -> Tensor:
        """argmax over ||v|| <= 1 of <v, grad>, per example: (N, ...) -> (N, ...); zero where the gradient is zero."""
        raise NotImplementedError


class Linf(Threat):
    """max_i |delta_i| <= eps."""

    norm = "linf"

    def size(self, delta: Tensor) -> Tensor:
        """max_i |delta_i|: (N, ...) -> (N,)."""
        return delta.flatten(1).abs().amax(1)

    def project(self, delta: Tensor) -> Tensor:
        """Clip each entry to [-eps, eps]."""
        eps = per_example(self.eps, delta)
        if isinstance(eps, Tensor):
            return torch.minimum(torch.maximum(delta, -eps), eps)
        return delta.clamp(-eps, eps)

    def sample(self, x: Tensor, noise: Stream) -> Tensor:
        """Uniform in [-eps, eps) for each entry."""
        return sent(noise.uniform(tuple(x.shape[1:]), dtype=x.dtype), x.device) * per_example(self.eps, x)

    def steepest(self, grad: Tensor) -> Tensor:
        """sign(grad)."""
        return grad.sign()


class L2(Threat):
    """sqrt(sum_i delta_i^2) <= eps."""

    norm = "l2"

    def size(self, delta: Tensor) -> Tensor:
        """sqrt(sum_i delta_i^2): (N, ...) -> (N,)."""
        return safe_norm(delta)

    def project(self, delta: Tensor) -> Tensor:
        """Shrink what is longer than eps to length eps; leave the rest untouched."""
        norm = broadcastable(safe_norm(delta), delta)
        eps = per_example(self.eps, delta)
        return torch.where(norm > eps, delta / torch.where(norm > 0, norm, 1.0) * eps, delta)

    def sample(self, x: Tensor, noise: Stream) -> Tensor:
        """Uniform in the ball: a uniform point on the sphere of d + 2 dimensions, less two of its coordinates.

        Harman and Lacko 2010. The usual length, u^(1/d), takes a power, whose last bit depends on an example's place in
        the batch.
        """
        image = noise.child("direction").normal(tuple(x.shape[1:]), dtype=x.dtype)
        dropped = noise.child("length").normal((2,), dtype=x.dtype)
        point = self.steepest(sent(torch.cat([image.flatten(1), dropped], 1), x.device))
        return point[:, :-2].reshape(x.shape) * per_example(self.eps, x)

    def steepest(self, grad: Tensor) -> Tensor:
        """grad / ||grad||_2."""
        largest = broadcastable(grad.flatten(1).abs().amax(1), grad)
        # Divided twice: the square of a gradient of 1e-30, which saturated models have, would vanish.
        scaled = grad / torch.where(largest > 0, largest, 1.0)
        norm = scaled.flatten(1).norm(dim=1).reshape(largest.shape)
        return scaled / torch.where(norm > 0, norm, 1.0)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        # Wherever they lie.
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a.cpu(), b.cpu())
    return a == b


THREATS: dict[str, Callable[[Radius], Threat]] = {"linf": Linf, "l2": L2}


def as_threat(threat: "Threat | str") -> Threat:
    """A threat model, or what a text says it is (see `parse`).

    Raises:
        ValueError: the text says nothing of the kind, or it is neither.
    """
    if isinstance(threat, str):
        return parse(threat)
    if not isinstance(threat, Threat):
        raise ValueError(
            f"{shown(repr(threat))} is not a threat model; give Linf(8 / 255), L2(0.5), or a text like linf:8/255"
        )
    return threat


def parse(text: str) -> Threat:
    """A threat model from text: `linf:8/255`, `l2:0.5`.

    Raises:
        ValueError: for another norm or a radius that is no number; the sentence says what is allowed.
    """
    match = re.fullmatch(r"\s*(\w+)\s*:\s*(\S+)\s*", text)
    if match is None or match[1].lower() not in THREATS:
        raise ValueError(f"{shown(text)} is not a threat model; write linf:RADIUS or l2:RADIUS, like linf:8/255")
    return THREATS[match[1].lower()](parse_number(match[2]))
