"""The checks behind `audit.audit`: those of clean images, then those that attack, each a few passes of the model.

    checks = AttackChecks(model=Batched(watched, 256), watched=watched, x=x, y=y, threat=threat, ...)
    checks.run(given)
    checks.findings, checks.unbroken

What each costs an example at most (forward and backward passes) and what it may find:

    clean images  32.5  see `clean_checks`
    attacks       48    the gradient an eighth of the radius away,
                        PGD-20, FGSM, random noise                                   EV208, EV216, EV281-EV283
    remedies            what is left, only where something calls for one             EV285, EV289
    grey          21    a radius at which no classifier can be right                 EV284

What the last one costs is set aside before the remedies. Where a finding says that gradients do not lead it has nothing
to tell, and is left out.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import ascend, default_step, move, start_in
from toughen.attacks.square import square
from toughen.devices import float64_home, in_float64
from toughen.evaluation.audit import statistics
from toughen.evaluation.audit.clean_checks import FEW, CleanChecks, ascending, mostly
from toughen.evaluation.audit.findings import GAP, exceeds
from toughen.evaluation.audit.gradient_repairs import (
    DOUBLE,
    LOGARITHM,
    MARGIN,
    OWN,
    REPAIRED,
    REVERSED,
    STRAIGHT,
    THROUGH,
    RepairedModel,
)
from toughen.evaluation.audit.observation import TINY, LogitsAsGiven, WatchedModel, measure_slope
from toughen.losses import full_precision, margin
from toughen.models.batched import Batched, predict, value_and_grad
from toughen.models.refusals import is_models
from toughen.threat import Threat

PASSES = 100
"""Forward and backward passes that an example may take in all: about 1 % of what AutoAttack takes."""

PGD_STEPS, FIRST_STEPS, AT_ONCE = 20, 8, 2
REMEDY_STEPS = 10
GREY_STEPS = 10
DRAWS = 4

# Radii at which a uniformly grey image is within reach of every image, by norm, from the number of pixels: there no
# classifier can be right more often than by always giving the commonest label.
GREY_RADII: dict[str, Callable[[int], float]] = {"linf": lambda pixels: 0.5, "l2": lambda pixels: 0.5 * pixels**0.5}

# What a remedy may help against: findings that say that the gradient is of no use.
BAD_GRADIENT = (
    "EV201",
    "EV202",
    "EV204",
    "EV205",
    "EV206",
    "EV207",
    "EV210",
    "EV216",
    "EV224",
    "EV281",
    "EV282",
    "EV283",
)

# Those of them that a derivative of the user's own, a detached value or a hook may be behind.
FALSE_GRADIENT = ("EV201", "EV207", "EV210", "EV281", "EV282", "EV283")


@dataclass(kw_only=True)
class AttackChecks(CleanChecks):
    """The examples of an audit and what is known of them so far.

    Attributes:
        threat: the ball.
        unbroken: which examples are correct and not broken by anything so far, (N,).
        unbroken_by_pgd: which are correct and not broken by PGD-20, (N,).
        trace, end, nonfinite: of the first steps of PGD-20, what they saw, where they ended, and what was not finite.
    """

    threat: Threat

    def run(self, given: LogitsAsGiven | None) -> None:
        """Run all checks.

        Args:
            given: what the model said in the mode in which it was given; None where that is inference mode.
        """
        self.check_outputs(given)
        self.unbroken = self.as_is.right.clone()
        self.unbroken_by_pgd = self.unbroken.clone()
        self.check_preprocessing()
        radius = torch.as_tensor(self.threat.eps, device=self.x.device).expand(self.n)
        # Below, rounding decides what a step does.
        rows = (self.unbroken & (radius > TINY)).nonzero().squeeze(1)
        if not len(rows):
            self.not_checked.append(
                "No attack was looked at, because no example is classified correctly and has a radius above 1e-5."
            )
            return
        if self.seen.gradient and self._first_steps_break_all(rows):
            return
        self.check_gradients(rows)
        if self.seen.gradient:
            self._check_reach(rows)
            self._compare_attacks(rows)
        self._try_remedies()
        self._attack_at_grey()
        self.note_changes()

    def _passes_left(self) -> int:
        """Passes that an example may still take."""
        used = self.passes.example_forwards + self.passes.example_backwards
        return PASSES - self.spent - -(-used // self.n)

    def _passes_for_remedies(self) -> int:
        """Those of them that the accuracy at a huge radius does not need."""
        aside = 0 if self.has(BAD_GRADIENT) else -(-(2 * GREY_STEPS + 1) * int(self.unbroken.sum()) // self.n)
        return self._passes_left() - aside

    def _first_steps_break_all(self, rows: Tensor) -> bool:
        """Run the first steps of PGD-20: a model that they break on all examples is not overestimated."""
        x, threat = self.x[rows], self.threat[rows]
        self.watched.forget()
        self.trace, self.end = statistics.Trace(self.y[rows]), start_in(x, threat, self.noise[rows.cpu()].child("pgd"))
        step = default_step(threat.eps, PGD_STEPS)
        for _ in range(FIRST_STEPS // AT_ONCE):
            self.end = ascend(self.model, x, self.trace, threat=threat, steps=AT_ONCE, step_size=step, start=self.end)
            broken = self.trace.broken
            if (~broken).sum() <= FEW * len(rows):
                self.unbroken_by_pgd[rows] = ~broken
                self.unbroken[rows[broken]] = False
                broke = f"{int(broken.sum())} of {len(rows)} examples"
                self.not_checked.append(f"Attacks were not compared, because the first steps of PGD broke {broke}.")
                return True
        self.nonfinite = self.watched.nonfinite_gradients, self.watched.nonfinite_logits
        return False

    def _check_reach(self, rows: Tensor) -> None:
        """Whether the gradient still tells what the margin does an eighth of the radius away.

        Of the networks in `tests/frozen` the margin keeps 87 % and more of what the gradient promises, in the median;
        of a linear one behind x + sin(3000 x) / 1000, 17 %.
        """
        if self.has(("EV202", "EV206", "EV207", "EV212", "EV224")) or not self.judged.any():
            return
        rows, grad = rows[self.judged], self.margin_grad[self.judged]
        x, threat = self.x[rows], self.threat[rows]
        length = torch.as_tensor(threat.eps, dtype=x.dtype, device=x.device).expand(len(x)).reshape(-1, 1, 1, 1) / 8
        slope = measure_slope(self.model, x, self.y[rows], grad, threat.steepest(grad), length)
        lost = slope.kept < 0.2 * slope.promised
        if len(x) >= 8 and exceeds(int(lost.sum()), len(x), 0.5):
            self._find("EV216", lost=int(lost.sum()), examples=len(x), seen=self.seen.of_gradients())

    def _compare_attacks(self, rows: Tensor) -> None:
        """PGD-20, and what must not be stronger than it: FGSM and random noise."""
        x, y, threat, noise, n = self.x[rows], self.y[rows], self.threat[rows], self.noise[rows.cpu()], len(rows)
        self.watched.forget()
        step, steps, trace = default_step(threat.eps, PGD_STEPS), PGD_STEPS - FIRST_STEPS, self.trace
        end = ascend(self.model, x, trace, threat=threat, steps=steps, step_size=step, start=self.end)
        logits = full_precision(predict(self.model, end))
        by_pgd = self._mark_broken(logits, rows)
        self.unbroken_by_pgd[rows] = ~by_pgd
        later = self.watched.nonfinite_gradients, self.watched.nonfinite_logits
        for code, before, since in zip(("EV202", "EV203"), self.nonfinite, later, strict=True):
            lost = before + since
            if lost and not self.has((code,)):
                self._find(code, lost=int(lost), examples=PGD_STEPS * n, which=f"inputs on the way of PGD-{PGD_STEPS}")
        flat = int((margin(logits, y).to(trace.first.dtype) <= trace.first).sum())
        if exceeds(flat, n, 0.3):
            self._find("EV281", flat=flat, examples=n)
        one_step = move(x, x, self.grad[rows], threat, threat.eps)
        by_fgsm = self._mark_broken(predict(self.model, one_step), rows)
        if statistics.better(by_fgsm, by_pgd, FEW, 1e-3):
            self._find("EV282", fgsm=int(by_fgsm.sum()), pgd=int(by_pgd.sum()), examples=n)
        by_noise, outputs = torch.zeros_like(by_pgd), [logits]
        for draw in range(DRAWS):
            direction = noise.child("noise", draw).normal(tuple(x.shape[1:]), dtype=x.dtype).to(x.device)
            outputs.append(full_precision(predict(self.model, move(x, x, direction, threat, threat.eps))))
            by_noise |= self._mark_broken(outputs[-1], rows)
        only = int((by_noise & ~by_pgd).sum())
        if only >= 3 and only > FEW * n:
            self._find("EV283", noise=only, examples=n)
        same = min((statistics.repeated(part) for part in outputs), key=lambda mask: int(mask.sum()))
        if mostly(same):
            self._find("EV208", same=int(same.sum()), examples=n)

    def _mark_broken(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Which rows are misclassified, (n,), from now on counted as broken. NaN is no class."""
        broken = (logits.argmax(1) != self.y[rows]) & ~statistics.not_finite(logits)
        self.unbroken[rows[broken]] = False
        return broken

    def _try_remedies(self) -> None:
        """Attack with a usable gradient where the model's own may be none, and count what breaks."""
        rows = self.unbroken.nonzero().squeeze(1)
        before = len(rows)
        sure = int(statistics.confident(self.logits[rows]).sum())
        called = self.has(BAD_GRADIENT) or sure > FEW * self.n or self.seen.steps
        if not before or not called or self._passes_for_remedies() < 3:
            return
        names = self._remedies()
        model = self._repaired_model(rows, names)
        after = before
        if model is None or (steps := min(REMEDY_STEPS, (self._passes_for_remedies() - 1) // 2)) < 1:
            names = []
        else:
            x, threat = self.x[rows], self.threat[rows]
            step, objective = default_step(threat.eps, steps), ascending(margin, self.y[rows])
            found = ascend(model, x, objective, threat=threat, steps=steps, step_size=step, start=x)
            # The model itself decides, not its remedied copy.
            after -= int(self._mark_broken(predict(self.model, found), rows).sum())
        queries = self._passes_for_remedies() - 1
        if after == before and queries > 0 and not self.has(("EV205",)):
            names.append(f"Square of {queries} queries")
            given = {"threat": self.threat[rows], "queries": queries, "noise": self.noise[rows.cpu()].child("square")}
            found = square(self.model, self.x[rows], self.y[rows], **given)
            after -= int(self._mark_broken(predict(self.model, found), rows).sum())
        if names:
            self._report_remedies(names, before, after, sure)

    def _remedies(self) -> list[str]:
        """Those that what was found and seen calls for."""
        seen, false = self.seen, self.has(FALSE_GRADIENT)
        wanted = {
            MARGIN: True,
            LOGARITHM: self.has(("EV224",)),
            REPAIRED: self.has(("EV202",)),
            STRAIGHT: bool(seen.steps) or self.has(("EV201", "EV206")),
            OWN: bool(seen.own) and false,
            THROUGH: (bool(seen.parted) and false) or not seen.gradient,
        }
        return [name for name, called in wanted.items() if called]

    def _repaired_model(self, rows: Tensor, names: list[str]) -> Batched | None:
        """The model with remedies that give most of these examples a gradient; what was needed is added to `names`."""
        x, y = self.x[rows], self.y[rows]
        for double in (False, True):
            inner: nn.Module = self.watched.model
            if double:
                names.append(DOUBLE)
                inner = copy.deepcopy(inner).to(float64_home(x.device)).double()
            model = self._repaired(inner, names)
            try:
                _, grad, _ = value_and_grad(model, x, ascending(margin, y))
            except Exception as error:
                if not is_models(error):
                    raise
                # As of a model that fixes the type of its inner tensors, which cannot be had in float64.
                continue
            if mostly(statistics.not_finite(grad) | statistics.all_zero(grad), 0.5):
                continue
            if self.has(FALSE_GRADIENT) and self._leads_down(x, y, grad):
                names.append(REVERSED)
                model = self._repaired(inner, names)
            return model
        return None

    def _repaired(self, inner: nn.Module, names: list[str]) -> Batched:
        width = float(torch.as_tensor(self.threat.eps).max())
        return Batched(WatchedModel(RepairedModel(inner, names, width)), self.model.size)

    def _leads_down(self, x: Tensor, y: Tensor, grad: Tensor) -> bool:
        """Whether the margin of most examples falls where a gradient says that it rises."""
        slope = measure_slope(self.model, x, y, grad, grad.nan_to_num().sign())
        return bool(in_float64(slope.kept < -0.5 * slope.promised).mean() > 0.5)

    def _report_remedies(self, names: list[str], before: int, after: int, sure: int) -> None:
        """What the remedies broke, once: in the first of the findings that called for them."""
        if exceeds(before - after, self.n, GAP) and not self.has(BAD_GRADIENT):
            if sure > FEW * self.n:
                self._find("EV285", sure=sure, examples=self.n)
            else:
                self._find("EV289", broken=before - after, examples=self.n, seen=self.seen.of_gradients())
        if before - after <= FEW * self.n:
            # The margin has all the gradient that saturation takes away: what it does not break is robust.
            self.findings = [found for found in self.findings if found.code != "EV205"]
        fell = f"falls from {before / self.n:.1%} to" if after < before else "stays at"
        text = f"With {' and '.join(names)}, accuracy on the {self.n} examples {fell} {after / self.n:.1%}."
        figures = {"before": before / self.n, "after": after / self.n}
        for place, found in enumerate(self.findings):
            if found.code in (*BAD_GRADIENT, "EV285", "EV289"):
                said = " ".join(filter(None, (found.remedy, text)))
                self.findings[place] = replace(found, remedy=said, figures={**found.figures, **figures})
                text = ""

    def _attack_at_grey(self) -> None:
        """A ball that holds a grey image for every example, where accuracy must be that of guessing."""
        if self.has(BAD_GRADIENT):
            codes = ", ".join(dict.fromkeys(found.code for found in self.findings if found.code in BAD_GRADIENT))
            self.not_checked.append(
                f"Accuracy at a huge radius was not checked, because gradients are known not to lead ({codes}); "
                "remove the cause and evaluate again."
            )
            return
        steps = min(GREY_STEPS, (self._passes_left() - 1) // 2)
        assert steps >= 3, "passes are set aside for this"
        rows = self.unbroken.nonzero().squeeze(1)
        x, trace = self.x[rows], statistics.Trace(self.y[rows])
        radius = torch.as_tensor(self.threat.eps, dtype=x.dtype, device=x.device).expand(self.n)
        radius = radius.clamp(min=GREY_RADII[self.threat.norm](self.x[0].numel()))
        threat = replace(self.threat, eps=radius[rows])
        if len(rows):
            step = default_step(threat.eps, steps)
            end = ascend(self.model, x, trace, threat=threat, steps=steps, step_size=step, start=x)
            trace(predict(self.model, end), slice(0, len(rows)))
        accuracy = int((~trace.broken).sum()) / self.n
        chance = max(1 / self.logits.shape[1], int(self.y.bincount().max()) / self.n)
        if accuracy > chance + 0.1:
            self._find("EV284", accuracy=accuracy, chance=chance, radius=float(radius.max()))
