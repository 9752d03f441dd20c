"""Instance-adaptive training (IAAT: Balaji et al. 2019): a radius for each training example, as large as it can bear.

    InstanceAdaptive(threat=Linf(8 / 255), warmup=3910)         # ten epochs of CIFAR-10 at batches of 128

After the warm-up an example's radius is tried at eps + gamma and at eps (algorithm 2); where the prediction withstands
the attack the radius moves a tenth of the way there, otherwise towards eps - gamma. The model is then trained on an
attack with the radius found, but on the clean image where it gets even that wrong (algorithm 1, line 11).

    minimise sum over S+ of loss(PGD(x_i, y_i, eps_i), y_i) + sum over S- of loss(x_i, y_i)

Where the paper and its code differ, side by side: docs/methods/instance_adaptive.md, The paper and its code.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.ascent import ascend, default_step, objective_of
from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods.adversarial import AdversarialTraining
from toughen.methods.base import Kind, Objective, Robust, Spec, State, classes_only
from toughen.methods.radii import UNSEEN, described, recalled, remember, smoothed, three_way
from toughen.models.batched import predict
from toughen.modes import attacking, plain
from toughen.settings import NonNegative, NonNegativeCount, Positive, Share
from toughen.threat import Radius

SEARCHED = 1000
"""More radii than this a line search does not try."""

Trained = tuple[Tensor, Tensor]
"""radii (N,), images to train on (N, C, H, W)"""


class InstanceAdaptive(Robust, frozen=True):
    """minimise mean loss(attack(x_i, y_i, eps_i), y_i) with eps_i from memory (IAAT, algorithms 1 and 2).

    An example without a label costs nothing and keeps its radius. Each must stand at most once in a batch: with
    `data.repeats` above 1 its copies would overwrite each other's radius, so leave it at 1. With gamma = beta = 0,
    misclassified: attack, a warm-up radius of eps and a step size of the attack's own, it is `AdversarialTraining`.

    Deviations: `attack_bn` is "eval" and the start clipped to [0, 1] unless the attack says otherwise, where the
    official code attacks and checks in training mode from "unclipped" starts; checks run in the attack's mode here too.
    The paper's "t < N_warm" with t from 1 is read as N_warm steps. Where it clips from below it leaves open whether the
    memory holds the clipped radius; here it holds what was trained with.

    Attributes:
        name: "instance_adaptive".
        attack: of training; its radius is the example's. The paper's: PGD-10 with steps of 2/255; its ImageNet runs
            take PGD-30 with 1/255 and random targets (`targeted_pgd`).
        selector: a weaker attack for selection alone, as the paper's PGD-10 on ImageNet; null for `attack`.
        gamma: how far a radius is tried to move, in pixel units; the paper's is 1.9/255, on ImageNet 4/255.
        beta: the share of that way that it moves; the paper's is 0.1.
        warmup: optimiser steps with one radius for all, before selection begins.
        warmup_radius: that radius, which is also the memory that an example begins with; null for the ball's.
        lower: no selected radius is below it; 4/255 in the paper's ImageNet runs.
        misclassified: what becomes of an example whose clean image is misclassified. "clean_loss", the paper: its
            clean loss is trained on, while algorithm 2 sets its radius like any other. "decay", the official code: the
            candidate of its radius is 0, so that the radius decays to (1 - beta) of itself at each visit, and it is
            attacked with that; in the warm-up, radius and memory are 0. "attack": no exception, no clean pass.
        step_rule: "fixed": the attack's own step size; "scaled", the official code: max(eps_i / (K / 2), step_size),
            which differs where eps_i is above half of K steps.
        selection: "candidates": algorithm 2, both radii always attacked. "reuse": the same rule for half of the
            work, see `_reuse`. "line_search" (section 5.2): the largest of grid, 2 grid, ... whose attack the
            prediction withstands, 0 if none, without smoothing; largest / grid further attacks.
        grid: eta, the grid of the line search in pixel units; the paper does not state it.
        largest: eps_max, where that grid ends; not stated either.
    """

    soft_labels: ClassVar[bool] = False

    name: Literal["instance_adaptive"] = "instance_adaptive"
    attack: AttackSpec = AttackSpec(name="pgd", steps=10, step_size=2 / 255)
    selector: AttackSpec | None = None
    gamma: NonNegative = 1.9 / 255
    beta: Share = 0.1
    warmup: NonNegativeCount = 0
    warmup_radius: NonNegative | None = None
    lower: NonNegative = 0.0
    misclassified: Literal["clean_loss", "decay", "attack"] = "clean_loss"
    step_rule: Literal["fixed", "scaled"] = "fixed"
    selection: Literal["candidates", "reuse", "line_search"] = "candidates"
    grid: Positive | None = None
    largest: Positive | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        specs = [self.attack, *([self.selector] if self.selector else [])]
        for spec in specs:
            step = spec.settings.get("step_size")
            if spec.minimal_norm:
                raise ValueError(f"attack {spec.name} looks for the nearest example, in no ball; use pgd")
            if self.step_rule == "scaled" and not isinstance(step, float):
                raise ValueError(
                    f"step_rule: scaled needs an attack with a step_size, a number; {spec.name} has {step}"
                )
        if self.selection == "line_search" and not (self.grid and self.largest and self.grid <= self.largest):
            raise ValueError(
                f"selection: line_search goes from grid to largest, which are {self.grid} and {self.largest}; give "
                "both, like grid=1/255 largest=16/255"
            )
        if self.selection == "line_search" and self.grid and self.largest and self.largest / self.grid > SEARCHED:
            raise ValueError(
                f"selection: line_search tries every grid up to largest, from {self.grid} to {self.largest}; give a "
                f"grid that fits at most {SEARCHED} times, like grid=1/255"
            )
        if self.selection == "reuse":
            settings = self.attack.settings
            if self.attack.name != "pgd" or settings["restarts"] > 1 or callable(settings["step_size"]):
                raise ValueError("selection: reuse continues one ascent of pgd; use pgd, one restart, one step size")
            if self.selector:
                raise ValueError("selection: reuse trains on what selection has found; leave selector out")
        return self

    @property
    def state_kinds(self) -> Mapping[str, Kind]:
        """A radius for each training example, and the steps done."""
        return {"radius": "index", "step": "replicated"}

    def init(self, spec: Spec) -> State:
        """No example seen, no step done."""
        radius = torch.full((spec.examples,), UNSEEN, device=spec.device, dtype=spec.dtype)
        # Which passes a batch takes depends on the step: on the CPU no device is waited for.
        return {"radius": radius, "step": torch.zeros((), dtype=torch.int64)}

    def typical_state(self, spec: Spec) -> State:
        """After the warm-up."""
        return self.init(spec) | {"step": torch.tensor(self.warmup)}

    def predicted(self, batches: int) -> float:
        """Cost of a run in natural steps: attacks alone while it warms up."""
        warming = min(self.warmup, batches)
        attacks = AdversarialTraining(attack=self.attack, threat=self.threat).predicted(warming)
        clean = 0 if self.misclassified == "attack" else warming / 3
        return attacks + clean + super().predicted(batches - warming)

    def metrics(self, state: State) -> dict[str, Any]:
        """Mean and histogram of the radii of all examples seen, and those of three of them."""
        return described(state["radius"], 2 * float(self.ball.eps))

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The loss with the radii found for this batch, which the memory then holds."""
        classes_only(batch.y, self.name)
        warming = int(state["step"]) < self.warmup
        classifier, selector = plain(model), self.attack if warming else self.selector or self.attack
        everyone = torch.ones_like(batch.y, dtype=torch.bool)
        attack_all = self.misclassified == "attack"
        correct = everyone if attack_all else self._right(classifier, selector, batch.x, batch)

        first = float(self.ball.eps) if self.warmup_radius is None else self.warmup_radius
        eps = recalled(state["radius"], batch.index, first)
        counts = everyone if self.misclassified == "clean_loss" else correct
        if warming:
            radius, inputs = torch.full_like(eps, first) * counts, None
        elif self.selection == "reuse":
            radius, inputs = self._reuse(classifier, batch, eps, counts)
        else:
            select = self._line_search if self.selection == "line_search" else self._candidates
            radius, inputs = select(classifier, selector, batch, eps, counts), None
        if inputs is None:
            inputs = self._attacked(classifier, self.attack, batch, radius, "attack")
        if self.misclassified == "clean_loss":
            inputs = torch.where(correct[:, None, None, None], inputs, batch.x)
        remember(state["radius"], batch, radius)
        state["step"] += 1
        yield lambda: cross_entropy(model(inputs), batch.y)

    def _candidates(self, model: nn.Module, attack: AttackSpec, batch: Batch, eps: Tensor, counts: Tensor) -> Tensor:
        """Algorithm 2 on remembered radii (N,)."""
        wider = self._withstands(model, attack, batch, eps + self.gamma, "wider")
        same = self._withstands(model, attack, batch, eps, "same")
        return self._moved(eps, wider, same, counts)

    def _line_search(self, model: nn.Module, attack: AttackSpec, batch: Batch, eps: Tensor, counts: Tensor) -> Tensor:
        assert self.grid is not None
        assert self.largest is not None
        found = torch.zeros_like(eps)
        # The quotient of two floats may fall just short of a whole number.
        for i in range(1, int(self.largest / self.grid * (1 + 1e-9)) + 1):
            radius = torch.full_like(eps, i * self.grid)
            found = torch.where(self._withstands(model, attack, batch, radius, f"search-{i}"), radius, found)
        return (found * counts).clamp(min=self.lower)

    def _reuse(self, model: nn.Module, batch: Batch, eps: Tensor, counts: Tensor) -> Trained:
        """Algorithm 2 and its training examples from one ascent that forks (ours, from no paper).

        The attacks on eps + gamma and on eps share their first K / 2 steps, in the wider ball. One branch stays there
        and tells who withstands, whose next radius is then settled. The other is shrunk to the ball of that radius, or
        of eps for whom it has to decide, and its end point is the training example too: what it is shrunk by at last is
        beta gamma, little beside eps. It goes a step less, since steps in a wider ball get farther: that makes it as
        strong as a fresh attack. Choices lean neither way, and agree with those of `_candidates` as two runs of it do
        with each other, or one in a hundred less where every radius is at the edge
        (`benchmarks/results/radius_reuse.md`).
        """
        steps, wide = self.attack.settings["steps"], eps + self.gamma
        shared = -(-steps // 2)
        step = self._step_size(self.attack, wide)
        common = self._attacked(model, self.attack, batch, wide, "attack", steps=shared, step_size=step)
        wider = self._right(model, self.attack, self._continued(model, batch, common, wide, steps - shared), batch)
        settled = self._moved(eps, wider, torch.zeros_like(wider), counts)
        near = torch.where(wider | ~counts, settled, eps)
        found = self._continued(model, batch, _shrunk(batch.x, common, wide, near), near, max(steps - shared - 1, 1))
        radius = self._moved(eps, wider, self._right(model, self.attack, found, batch), counts)
        return radius, _shrunk(batch.x, found, near, radius)

    def _continued(self, model: nn.Module, batch: Batch, start: Tensor, radius: Tensor, steps: int) -> Tensor:
        """Further steps of the attack in balls of other radii (N,)."""
        settings = self.attack.settings
        with attacking(model, settings["attack_bn"]):
            return ascend(
                model,
                batch.x,
                objective_of(model, batch.x, batch.y, settings["loss"]),
                threat=self.ball.of_radius(radius),
                steps=steps,
                step_size=self._step_size(self.attack, radius),
                start=start,
            )

    def _moved(self, eps: Tensor, wider: Tensor, same: Tensor, counts: Tensor) -> Tensor:
        """The next radii (N,) by algorithm 2; where `counts` is false the candidate is 0."""
        candidate = three_way(eps, self.gamma, wider, same)
        if self.misclassified == "decay":
            candidate = candidate.clamp(min=0) * counts
        return smoothed(eps, candidate, self.beta, self.lower)

    def _withstands(self, model: nn.Module, attack: AttackSpec, batch: Batch, radius: Tensor, purpose: str) -> Tensor:
        return self._right(model, attack, self._attacked(model, attack, batch, radius, purpose), batch)

    def _right(self, model: nn.Module, attack: AttackSpec, x: Tensor, batch: Batch) -> Tensor:
        """Which of the images are classified correctly in the attack's mode, (N,) bool; none without a label."""
        with attacking(model, attack.settings.get("attack_bn", "eval")):
            return predict(model, x).argmax(1) == batch.y

    def _attacked(
        self, model: nn.Module, attack: AttackSpec, batch: Batch, radius: Tensor, purpose: str, **changes: Any
    ) -> Tensor:
        if self.step_rule == "scaled":
            changes = {"step_size": self._step_size(attack, radius), **changes}
        threat, noise = self.ball.of_radius(radius), batch.noise.child(purpose)
        return attack(model, batch.x, batch.y, threat=threat, noise=noise, **changes)

    def _step_size(self, attack: AttackSpec, radius: Tensor) -> Radius:
        """The steps that an attack of K steps takes in balls of these radii (N,)."""
        step, steps = attack.settings["step_size"], attack.settings["steps"]
        if step is None:
            return default_step(radius, steps)
        return step if self.step_rule == "fixed" else (radius / (steps / 2)).clamp(min=step)


def _shrunk(x: Tensor, found: Tensor, was: Tensor, radius: Tensor) -> Tensor:
    """Perturbed images from balls of radii `was` (N,), brought into smaller ones by shrinking the perturbation."""
    # No radius grows but by `lower`, for which the perturbation has to do as it is.
    share = (radius / was.clamp(min=torch.finfo(was.dtype).tiny)).clamp(max=1)
    return (x + share.to(x)[:, None, None, None] * (found - x)).clamp(0, 1)
