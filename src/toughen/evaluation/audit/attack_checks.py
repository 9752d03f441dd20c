"""The checks behind `audit.audit`: those of clean images, then those that attack, each a few passes of the model.

    checks = AttackChecks(model=Batched(watched, 256), watched=watched, x=x, y=y, threat=threat, ...)
    checks.run(given)
    checks.findings, checks.unbroken

What each costs an example at most (forward and backward passes) and what it may find:

    clean images  26    see `clean_checks`
    attacks       46    PGD-20, FGSM, random noise                                   EV208, EV281-EV283
    remedies      25    only where a finding calls for one                           EV285
    grey          21    a radius at which no classifier can be right                 EV284
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import ascend, default_step, move, start_in
from toughen.attacks.square import square
from toughen.evaluation.audit import statistics
from toughen.evaluation.audit.clean_checks import FEW, TINY, CleanChecks, LogitsAsGiven, ascending, mostly
from toughen.evaluation.audit.findings import GAP, exceeds
from toughen.evaluation.audit.gradient_repairs import DOUBLE, LOGARITHM, MARGIN, REPAIRED, STRAIGHT, RepairedModel
from toughen.losses import full_precision, margin
from toughen.models.batched import Batched, predict, value_and_grad
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
BAD_GRADIENT = ("EV201", "EV202", "EV204", "EV205", "EV206", "EV207", "EV224", "EV281", "EV282", "EV283")


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
        if self._first_steps_break_all(rows):
            return
        self.check_gradients(rows)
        self._compare_attacks(rows)
        self._try_remedies()
        self._attack_at_grey()

    def _passes_left(self) -> int:
        """Passes that an example may still take."""
        used = self.passes.example_forwards + self.passes.example_backwards
        return PASSES - self.spent - -(-used // self.n)

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
        flat = int((margin(logits, y).double() <= trace.first).sum())
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
        """Attack with a usable gradient where a finding says that the model's own is none, and count what breaks."""
        rows = self.unbroken.nonzero().squeeze(1)
        before = len(rows)
        sure = int(statistics.confident(self.logits[rows]).sum())
        if not before or not (self.has(BAD_GRADIENT) or sure > FEW * self.n):
            return
        names = [MARGIN]
        names += [LOGARITHM] if self.has(("EV224",)) else []
        names += [REPAIRED] if self.has(("EV202",)) else []
        names += [STRAIGHT] if self.has(("EV201", "EV206")) else []
        model = self._repaired_model(rows, names)
        after = before
        if model is None:
            names = []
        else:
            x, threat, steps = self.x[rows], self.threat[rows], min(REMEDY_STEPS, (self._passes_left() - 1) // 2)
            step, objective = default_step(threat.eps, steps), ascending(margin, self.y[rows])
            found = ascend(model, x, objective, threat=threat, steps=steps, step_size=step, start=x)
            # The model itself decides, not its remedied copy.
            after -= int(self._mark_broken(predict(self.model, found), rows).sum())
        queries = self._passes_left() - 1
        if after == before and queries > 0 and not self.has(("EV205",)):
            names.append(f"Square of {queries} queries")
            given = {"threat": self.threat[rows], "queries": queries, "noise": self.noise[rows.cpu()].child("square")}
            found = square(self.model, self.x[rows], self.y[rows], **given)
            after -= int(self._mark_broken(predict(self.model, found), rows).sum())
        self._report_remedies(names, before, after, sure)

    def _repaired_model(self, rows: Tensor, names: list[str]) -> Batched | None:
        """The model with remedies that give most of these examples a gradient; what was needed is added to `names`."""
        x, y = self.x[rows], self.y[rows]
        for double in (False, True):
            inner: nn.Module = self.watched.model
            if double:
                names.append(DOUBLE)
                inner = copy.deepcopy(inner).double()
            model = Batched(statistics.WatchedModel(RepairedModel(inner, names)), self.model.size)
            try:
                _, grad, _ = value_and_grad(model, x, ascending(margin, y))
            except (RuntimeError, TypeError):
                # A model that fixes the type of its inner tensors cannot be had in float64.
                continue
            if not mostly(statistics.not_finite(grad) | statistics.all_zero(grad), 0.5):
                return model
        return None

    def _report_remedies(self, names: list[str], before: int, after: int, sure: int) -> None:
        """What the remedies broke, in the findings that called for them."""
        if exceeds(before - after, self.n, GAP) and not self.has(BAD_GRADIENT):
            self._find("EV285", sure=sure, examples=self.n)
        if before - after <= FEW * self.n:
            # The margin has all the gradient that saturation takes away: what it does not break is robust.
            self.findings = [found for found in self.findings if found.code != "EV205"]
        fell = f"falls from {before / self.n:.1%} to" if after < before else "stays at"
        text = f"With {' and '.join(names)}, accuracy on the {self.n} examples {fell} {after / self.n:.1%}."
        figures = {"before": before / self.n, "after": after / self.n}
        self.findings = [
            replace(found, remedy=text, figures={**found.figures, **figures})
            if found.code in (*BAD_GRADIENT, "EV285")
            else found
            for found in self.findings
        ]

    def _attack_at_grey(self) -> None:
        """A ball that holds a grey image for every example, where accuracy must be that of guessing."""
        steps = min(GREY_STEPS, (self._passes_left() - 1) // 2)
        if self.has(BAD_GRADIENT) or steps < 3:
            self.not_checked.append(
                "Accuracy at a huge radius was not checked, because gradients are known not to lead; "
                "remove the cause and evaluate again."
            )
            return
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
