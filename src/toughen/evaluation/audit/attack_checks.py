"""The examination behind `audit.audit`: its stages in order, each a few passes of the model.

    examination = Examination(model=Batched(watched, 256), watched=watched, x=x, y=y, threat=threat, ...)
    examination.run(given)
    examination.findings, examination.standing

It begins as an inspection without a threat model (`inspection.Inspection`). What each further stage needs, how much it
costs an example at most (forward and backward passes) and what it may find:

    inspection  26    outputs, feeding, slope
    pgd         46    PGD-20, FGSM, random noise                                   EV208, EV281-EV283
    remedies    25    only where a symptom calls for one                           EV285
    grey        21    a radius at which no classifier can be right                 EV284
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import ascend, default_step, move, start_in
from toughen.attacks.square import square
from toughen.evaluation.audit import statistics
from toughen.evaluation.audit.clean_checks import FEW, TINY, AsGiven, CleanChecks, ascending, mostly
from toughen.evaluation.audit.findings import GAP, exceeds
from toughen.evaluation.audit.gradient_repairs import DOUBLE, LOGARITHM, MARGIN, REPAIRED, STRAIGHT, RepairedModel
from toughen.losses import full_precision, margin
from toughen.models.batched import Batched, predict, value_and_grad
from toughen.threat import Threat

PASSES = 100
"""Forward and backward passes that an example may take in all: about 1 % of what AutoAttack takes."""

STEPS, FIRST, LOOK = 20, 8, 2
REMEDY_STEPS = 10
GREY_STEPS = 10
DRAWS = 4

# Radii at which a uniformly grey image is within reach of every image, by norm, from the number of pixels: there no
# classifier can be right more often than by always giving the commonest label.
GREY: dict[str, Callable[[int], float]] = {"linf": lambda pixels: 0.5, "l2": lambda pixels: 0.5 * pixels**0.5}

# What a remedy may help against: findings that say that the gradient does not lead.
MISLED = ("EV201", "EV202", "EV204", "EV205", "EV206", "EV207", "EV224", "EV281", "EV282", "EV283")


@dataclass(kw_only=True)
class AttackChecks(CleanChecks):
    """The examples of an audit and what is known of them so far.

    Attributes:
        threat: the ball.
        standing: which examples are correct and not broken by anything so far, (N,).
        standing_pgd: which are correct and not broken by PGD-20, (N,).
        trace, end, lost: of the first steps of PGD-20, what they saw, where they ended, and what was not finite.
    """

    threat: Threat

    def run(self, given: AsGiven | None) -> None:
        """All stages.

        Args:
            given: what the model said in the mode in which it was given; None where that is inference mode.
        """
        self.outputs(given)
        self.standing = self.fed.right.clone()
        self.standing_pgd = self.standing.clone()
        self.feeding()
        radius = torch.as_tensor(self.threat.eps, device=self.x.device).expand(self.n)
        # Below, rounding decides what a step does.
        rows = (self.standing & (radius > TINY)).nonzero().squeeze(1)
        if not len(rows):
            self.not_checked.append(
                "No attack was looked at, because no example is classified correctly and has a radius above 1e-5."
            )
            return
        if self._falls(rows):
            return
        self.slope(rows)
        self._pgd(rows)
        self._remedies()
        self._grey()

    def _left(self) -> int:
        """Passes that an example may still take."""
        used = self.passes.example_forwards + self.passes.example_backwards
        return PASSES - self.spent - -(-used // self.n)

    def _falls(self, rows: Tensor) -> bool:
        """The first steps of PGD-20, and whether they break all: what falls at once is not overestimated."""
        x, threat = self.x[rows], self.threat[rows]
        self.watched.forget()
        self.trace, self.end = statistics.Trace(self.y[rows]), start_in(x, threat, self.noise[rows.cpu()].child("pgd"))
        step = default_step(threat.eps, STEPS)
        for _ in range(FIRST // LOOK):
            self.end = ascend(self.model, x, self.trace, threat=threat, steps=LOOK, step_size=step, start=self.end)
            broken = self.trace.broken
            if (~broken).sum() <= FEW * len(rows):
                self.standing_pgd[rows] = ~broken
                self.standing[rows[broken]] = False
                broke = f"{int(broken.sum())} of {len(rows)} examples"
                self.not_checked.append(f"Attacks were not compared, because the first steps of PGD broke {broke}.")
                return True
        self.lost = self.watched.gradients, self.watched.logits
        return False

    def _pgd(self, rows: Tensor) -> None:
        """PGD-20, and what must not be stronger than it: FGSM and random noise."""
        x, y, threat, noise, n = self.x[rows], self.y[rows], self.threat[rows], self.noise[rows.cpu()], len(rows)
        self.watched.forget()
        step, steps, trace = default_step(threat.eps, STEPS), STEPS - FIRST, self.trace
        end = ascend(self.model, x, trace, threat=threat, steps=steps, step_size=step, start=self.end)
        logits = full_precision(predict(self.model, end))
        by_pgd = self._judge(logits, rows)
        self.standing_pgd[rows] = ~by_pgd
        gradients, outputs_lost = self.watched.gradients + self.lost[0], self.watched.logits + self.lost[1]
        for code, lost in (("EV202", gradients), ("EV203", outputs_lost)):
            if lost and not self.has((code,)):
                self._find(code, lost=int(lost), examples=STEPS * n, which=f"inputs on the way of PGD-{STEPS}")
        flat = int((margin(logits, y).double() <= trace.first).sum())
        if exceeds(flat, n, 0.3):
            self._find("EV281", flat=flat, examples=n)
        one_step = move(x, x, self.grad[rows], threat, threat.eps)
        by_fgsm = self._judge(predict(self.model, one_step), rows)
        if statistics.better(by_fgsm, by_pgd, FEW, 1e-3):
            self._find("EV282", fgsm=int(by_fgsm.sum()), pgd=int(by_pgd.sum()), examples=n)
        by_noise, outputs = torch.zeros_like(by_pgd), [logits]
        for draw in range(DRAWS):
            direction = noise.child("noise", draw).normal(tuple(x.shape[1:]), dtype=x.dtype).to(x.device)
            outputs.append(full_precision(predict(self.model, move(x, x, direction, threat, threat.eps))))
            by_noise |= self._judge(outputs[-1], rows)
        only = int((by_noise & ~by_pgd).sum())
        if only >= 3 and only > FEW * n:
            self._find("EV283", noise=only, examples=n)
        same = min((statistics.repeated(part) for part in outputs), key=lambda mask: int(mask.sum()))
        if mostly(same):
            self._find("EV208", same=int(same.sum()), examples=n)

    def _judge(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Which rows are misclassified, (n,); they stand no longer. NaN is no class."""
        broken = (logits.argmax(1) != self.y[rows]) & ~statistics.lost(logits)
        self.standing[rows[broken]] = False
        return broken

    def _remedies(self) -> None:
        """A gradient that leads, where a symptom says that the model's own does not, and what it breaks."""
        rows = self.standing.nonzero().squeeze(1)
        before = len(rows)
        sure = int(statistics.confident(self.logits[rows]).sum())
        if not before or not (self.has(MISLED) or sure > FEW * self.n):
            return
        names = [MARGIN]
        names += [LOGARITHM] if self.has(("EV224",)) else []
        names += [REPAIRED] if self.has(("EV202",)) else []
        names += [STRAIGHT] if self.has(("EV201", "EV206")) else []
        model = self._usable(rows, names)
        after = before
        if model is None:
            names = []
        else:
            x, threat, steps = self.x[rows], self.threat[rows], min(REMEDY_STEPS, (self._left() - 1) // 2)
            step, objective = default_step(threat.eps, steps), ascending(margin, self.y[rows])
            found = ascend(model, x, objective, threat=threat, steps=steps, step_size=step, start=x)
            # The model itself decides, not its remedied copy.
            after -= int(self._judge(predict(self.model, found), rows).sum())
        queries = self._left() - 1
        if after == before and queries > 0 and not self.has(("EV205",)):
            names.append(f"Square of {queries} queries")
            given = {"threat": self.threat[rows], "queries": queries, "noise": self.noise[rows.cpu()].child("square")}
            found = square(self.model, self.x[rows], self.y[rows], **given)
            after -= int(self._judge(predict(self.model, found), rows).sum())
        self._report(names, before, after, sure)

    def _usable(self, rows: Tensor, names: list[str]) -> Batched | None:
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
            if not mostly(statistics.lost(grad) | statistics.zero(grad), 0.5):
                return model
        return None

    def _report(self, names: list[str], before: int, after: int, sure: int) -> None:
        """What the remedies broke, in the findings that called for them."""
        if exceeds(before - after, self.n, GAP) and not self.has(MISLED):
            self._find("EV285", sure=sure, examples=self.n)
        if before - after <= FEW * self.n:
            # The margin has all the gradient that saturation takes away: what it does not break stands rightly.
            self.findings = [found for found in self.findings if found.code != "EV205"]
        fell = f"falls from {before / self.n:.1%} to" if after < before else "stays at"
        text = f"With {' and '.join(names)}, accuracy on the {self.n} examples {fell} {after / self.n:.1%}."
        figures = {"before": before / self.n, "after": after / self.n}
        self.findings = [
            replace(found, remedy=text, figures={**found.figures, **figures})
            if found.code in (*MISLED, "EV285")
            else found
            for found in self.findings
        ]

    def _grey(self) -> None:
        """A ball that holds a grey image for every example, where accuracy must be that of guessing."""
        steps = min(GREY_STEPS, (self._left() - 1) // 2)
        if self.has(MISLED) or steps < 3:
            self.not_checked.append(
                "Accuracy at a huge radius was not checked, because gradients are known not to lead; "
                "remove the cause and evaluate again."
            )
            return
        rows = self.standing.nonzero().squeeze(1)
        x, trace = self.x[rows], statistics.Trace(self.y[rows])
        radius = torch.as_tensor(self.threat.eps, dtype=x.dtype, device=x.device).expand(self.n)
        radius = radius.clamp(min=GREY[self.threat.norm](self.x[0].numel()))
        threat = replace(self.threat, eps=radius[rows])
        if len(rows):
            step = default_step(threat.eps, steps)
            end = ascend(self.model, x, trace, threat=threat, steps=steps, step_size=step, start=x)
            trace(predict(self.model, end), slice(0, len(rows)))
        accuracy = int((~trace.broken).sum()) / self.n
        chance = max(1 / self.logits.shape[1], int(self.y.bincount().max()) / self.n)
        if accuracy > chance + 0.1:
            self._find("EV284", accuracy=accuracy, chance=chance, radius=float(radius.max()))
