"""Parts as a stranger writes them, unregistered: sound ones, and what makes others of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec, attack, minimal_norm
from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods import Kind, Method, Objective, Robust, Spec, State
from toughen.modes import attacking, plain
from toughen.noise import Stream, fixed
from toughen.settings import Count, Share
from toughen.testing import BrokenPromise, Promise
from toughen.threat import Threat, per_example


@attack
def zigzag(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 4,
    noise: Stream | None = None,
) -> Tensor:
    """Steps of falling length from a random start; keeps the highest loss of each example."""
    noise = fixed(len(x), device=x.device) if noise is None else noise
    clean = x.detach()
    delta = threat.sample(clean, noise.child("zigzag"))
    best, highest = clean.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    with attacking(model, "eval"), torch.enable_grad():
        for step in range(steps + 1):
            at = (clean + delta).clamp(0, 1).requires_grad_()
            loss = cross_entropy(model(at), y)
            (grad,) = torch.autograd.grad(loss.sum(), at)
            better = loss.detach() > highest
            highest = torch.where(better, loss.detach(), highest)
            best = torch.where(better[:, None, None, None], at.detach(), best)
            length = per_example(threat.eps, clean) * 2 / (1 + step)
            delta = threat.project(delta + length * threat.steepest(grad))
    return best


@attack
def lottery(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    queries: Count = 20,
    noise: Stream | None = None,
) -> Tensor:
    """Random points of the ball, of which a misclassified one wins; no gradients."""
    noise = fixed(len(x), device=x.device) if noise is None else noise
    best = x.detach().clone()
    with torch.no_grad(), attacking(model, "eval"):
        losses = cross_entropy(model(best), y)
        for query in range(queries):
            # Towards the surface, where it is more likely.
            point = threat.steepest(threat.sample(x.detach(), noise.child("lottery", query)))
            tried = (x.detach() + threat.project(point)).clamp(0, 1)
            found = cross_entropy(model(tried), y)
            better = found > losses
            losses = torch.where(better, found, losses)
            best = torch.where(better[:, None, None, None], tried, best)
    return best


@minimal_norm
@attack
def bisection(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, steps: Count = 12) -> Tensor:
    """The shortest step along the gradient's direction that breaks each example, by halving."""
    clean = x.detach()
    with attacking(model, "eval"), torch.enable_grad():
        at = clean.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(model(at), y).sum(), at)
        direction, labels = threat.steepest(grad), y if y.ndim == 1 else y.argmax(1)
        low, high = torch.zeros_like(clean[:, :1, :1, :1]), torch.full_like(clean[:, :1, :1, :1], 2)
        with torch.no_grad():
            best, found = clean.clone(), model(clean).argmax(1) != labels
            done = found
            for _ in range(steps):
                middle = (low + high) / 2
                tried = (clean + middle * direction).clamp(0, 1)
                broken = (model(tried).argmax(1) != labels)[:, None, None, None]
                best = torch.where(broken & ~done[:, None, None, None], tried, best)
                low, high = torch.where(broken, low, middle), torch.where(broken, middle, high)
    return best


class Patient(Robust, frozen=True):
    """Adversarial training on a blend with the last perturbation of the same image, and of the same slot."""

    name: Literal["patient"] = "patient"
    attack: AttackSpec = AttackSpec(name="pgd", steps=2)
    share: Share = 0.5

    @property
    def state_kinds(self) -> Mapping[str, Kind]:
        """A perturbation of each row, and the batches done."""
        return {"delta": "slot", "batches": "replicated"}

    def init(self, spec: Spec) -> State:
        """Nothing yet."""
        delta = torch.zeros(spec.slots, *spec.shape, device=spec.device, dtype=spec.dtype)
        return {"delta": delta, "batches": torch.zeros((), dtype=torch.int64)}

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """One step on the blend."""
        n = len(batch)
        noise = batch.noise.child("patient", int(state["batches"]))
        found = self.attack(plain(model), batch.x, batch.y, threat=self.ball, noise=noise)
        delta = self.share * (found - batch.x) + (1 - self.share) * state["delta"][:n]
        state["delta"][:n] = delta
        state["batches"] += 1
        inputs = (batch.x + delta).clamp(0, 1)
        yield lambda: cross_entropy(model(inputs), batch.y)


class TwoStep(Method, frozen=True):
    """A natural step, and one on flipped images."""

    name: Literal["two_step"] = "two_step"

    @property
    def steps_per_batch(self) -> int:
        """Two."""
        return 2

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """One objective for each of the two."""
        yield lambda: cross_entropy(model(batch.x), batch.y)
        yield lambda: cross_entropy(model(batch.x.flip(3)), batch.y)


class Network(nn.Module):
    """Normalisation, a convolution, BatchNorm, dropout and a head."""

    mean: Tensor

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.head(self.features((x - self.mean) / 0.25).mean((2, 3)))


def told(promises: Sequence[Promise], name: str, words: str) -> None:
    """That promise is broken with these words, and told in one line that names subject, promise and remedy."""
    (promise,) = [one for one in promises if one.name == name]
    with pytest.raises(BrokenPromise) as error:
        promise()
    sentence = str(error.value)
    assert sentence.startswith(f"{promise.subject} breaks the promise {name!r} ({promise.says}): ")
    assert sentence.endswith(f"; {promise.remedy}")
    assert words in sentence
    assert "\n" not in sentence
