"""The examination behind `audit.audit`: its stages in order, each a few passes of the model.

    examination = Examination(Batched(watched, 256), watched, x, y, threat, ids, noise, passes)
    examination.run(given)
    examination.findings, examination.standing

What each stage needs, how much it costs an example at most (forward and backward passes) and what it may find:

    outputs      4.5  logits of the clean images, twice and in another company     EV203, EV211-EV214, EV224, EV225
    labels       9    other preprocessings and namings of the classes              EV222, EV223
    slope        4    the gradient against the change of the output                EV201, EV202, EV204-EV207
    pgd         46    PGD-20, FGSM, random noise                                   EV208, EV281-EV283
    remedies    25    only where a symptom calls for one                           EV285
    grey        21    a radius at which no classifier can be right                 EV284
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import ascend, default_step, move, start_in
from toughen.attacks.square import square
from toughen.batched import Batched, Objective, predict, value_and_grad
from toughen.counting import Passes
from toughen.evaluation import symptoms
from toughen.evaluation.findings import GAP, Finding, exceeds, finding, first_ids
from toughen.evaluation.remedies import DOUBLE, LOGARITHM, MARGIN, REPAIRED, STRAIGHT, Remedied
from toughen.losses import Loss, cross_entropy, full_precision, margin
from toughen.noise import Stream
from toughen.threat import Threat

PASSES = 100
"""Forward and backward passes that an example may take in all: about 1 % of what AutoAttack takes."""

STEPS, FIRST, LOOK = 20, 8, 2
REMEDY_STEPS = 10
GREY_STEPS = 10
DRAWS = 4

# A symptom on at most 2 % of the examples moves the accuracy by at most 2 points.
FEW = 0.02

# A pixel's change that is far above rounding and far below one grey level.
TINY = 1e-5

# Radii at which a uniformly grey image is within reach of every image, by norm, from the number of pixels: there no
# classifier can be right more often than by always giving the commonest label.
GREY: dict[str, Callable[[int], float]] = {"linf": lambda pixels: 0.5, "l2": lambda pixels: 0.5 * pixels**0.5}

# What a remedy may help against: findings that say that the gradient does not lead.
MISLED = ("EV201", "EV202", "EV204", "EV205", "EV206", "EV207", "EV224", "EV281", "EV282", "EV283")


@dataclass(frozen=True)
class AsGiven:
    """A model in the mode in which it was given, where that is not inference mode.

    Attributes:
        logits: of the first examples, (M, K); NaN where it then returns no logits.
        names: its modules in training mode.
    """

    logits: Tensor
    names: list[str]


@dataclass
class Examination:
    """The examples of an audit and what is known of them so far.

    Attributes:
        model: the classifier in inference mode, frozen, in pieces.
        watched: the same within, which counts what is not finite.
        x: images (N, C, H, W) in [0, 1].
        y: classes (N,).
        threat: the ball.
        ids: example ids (N,), on the CPU.
        noise: stream of the random draws.
        passes: the count of the model's passes.
        spent: passes of an example that are not in `passes`.
        findings: what was found.
        not_checked: what was not looked at.
        standing: which examples are correct and not broken by anything so far, (N,).
        standing_pgd: which are correct and not broken by PGD-20, (N,).
        trace, end, lost: of the first steps of PGD-20, what they saw, where they ended, and what was not finite.
    """

    model: Batched
    watched: symptoms.Watched
    x: Tensor
    y: Tensor
    threat: Threat
    ids: Tensor
    noise: Stream
    passes: Passes
    spent: int = 0
    findings: list[Finding] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.x)

    def run(self, given: AsGiven | None) -> None:
        """All stages.

        Args:
            given: what the model said in the mode in which it was given; None where that is inference mode.
        """
        self._outputs(given)
        self.standing = self.logits.argmax(1) == self.y
        self.standing &= ~symptoms.lost(self.logits)
        self.standing_pgd = self.standing.clone()
        self._labels()
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
        self._slope(rows)
        self._pgd(rows)
        self._remedies()
        self._grey()

    def _left(self) -> int:
        """Passes that an example may still take."""
        used = self.passes.example_forwards + self.passes.example_backwards
        return PASSES - self.spent - -(-used // self.n)

    def _find(self, code: str, **figures: float | str) -> None:
        self.findings.append(finding(code, **figures))

    def _has(self, codes: Collection[str]) -> bool:
        return any(finding.code in codes for finding in self.findings)

    def _which(self, mask: Tensor) -> str:
        return f"examples ({first_ids(self.ids[mask.cpu()].tolist())})"

    def _outputs(self, given: AsGiven | None) -> None:
        """What the model says of the clean images, and whether it says it again."""
        _, self.grad, raw = value_and_grad(self.model, self.x, ascending(cross_entropy, self.y))
        with symptoms.Operations() as seen:
            again = full_precision(predict(self.model, self.x))
        self.logits = logits = full_precision(raw)
        self.low_precision = seen.low_precision
        lost = symptoms.lost(logits)
        if lost.any():
            self._find("EV203", lost=int(lost.sum()), examples=self.n, which=self._which(lost))
        if given is not None and _mostly(symptoms.differ(given.logits, logits[: len(given.logits)], 1e-3)):
            self._find("EV211", modules=len(given.names), first=given.names[0])
        if seen.autograd:
            self._find("EV214", calls=seen.autograd)
        # What kernels that add in any order do; 16 bits have their own rounding.
        rounding = 0.05 if self.low_precision else 1000 * torch.finfo(logits.dtype).eps
        random = symptoms.differ(logits, again, rounding)
        if _mostly(random):
            self._find("EV212", differ=int(random.sum()), examples=self.n)
        elif self.n > 1:
            # TF32 does a tenth of a per cent between two kernels; batch statistics do several per cent.
            order = torch.arange(0, self.n, 2, device=self.x.device).flip(0)
            elsewhere = full_precision(predict(self.model, self.x[order]))
            company = symptoms.differ(logits[order], elsewhere, max(rounding, 0.01))
            if _mostly(company):
                self._find("EV213", differ=int(company.sum()), examples=len(order))
        if symptoms.probabilities(logits):
            self._find("EV224", examples=self.n)
        elif symptoms.log_probabilities(logits):
            self._find("EV225", examples=self.n)

    def _labels(self) -> None:
        """Whether other preprocessing or other names of the classes make more sense of the predictions."""
        given = self.standing
        accuracy = given.float().mean().item()
        best, change_of = accuracy, ""
        others = symptoms.preprocessings(self.watched.model, self.x.shape[1])
        # Nothing can be more than 5 points better than 95 %.
        others = {name: (change, points) for name, (change, points) in others.items() if accuracy + points < 1}
        for name, (change, points) in others.items():
            right = predict(self.model, change(self.x)).argmax(1) == self.y
            other = right.float().mean().item()
            if other > best and symptoms.better(right, given, points, 1e-3 / len(others)):
                best, change_of = other, name
        if change_of:
            self._find("EV222", accuracy=accuracy, other=best, change=change_of)
        renamed = symptoms.relabelling(self.logits.argmax(1), self.y, self.logits.shape[1])
        if renamed is not None:
            self._find("EV223", accuracy=accuracy, other=renamed[1].float().mean().item(), change=renamed[0])

    def _slope(self, rows: Tensor) -> None:
        """The gradient at the clean images, by itself and against what a tiny change does to the output."""
        x, y, logits, n = self.x[rows], self.y[rows], self.logits[rows], len(rows)
        lost, zeros, full = symptoms.lost(self.grad), symptoms.zero(self.grad)[rows], symptoms.one_hot(logits)
        if lost.any():
            self._find("EV202", lost=int(lost.sum()), examples=self.n, which=self._which(lost))
        if (zeros & full).sum() > FEW * n:
            self._find("EV205", saturated=int((zeros & full).sum()), examples=n)
        if (zeros & ~full).sum() > FEW * n:
            self._find("EV204" if self.low_precision else "EV201", zero=int((zeros & ~full).sum()), examples=n)
        if self._has(("EV212", "EV224")):
            # The change of a random output, or of a probability that is 1 to the last bit, says nothing.
            return
        _, grad, _ = value_and_grad(self.model, x, ascending(margin, y))
        signs = self.noise[rows.cpu()].child("signs").uniform(tuple(x.shape[1:]), dtype=x.dtype).to(x.device).sign()
        direction = torch.where(grad.isfinite() & (grad != 0), grad.sign(), signs)
        up, down = ((x + step * direction).clamp(0, 1) for step in (TINY, -TINY))
        above, below = (full_precision(predict(self.model, end)) for end in (up, down))
        promised = (grad.double().nan_to_num() * (up - down).double()).flatten(1).sum(1)
        kept = margin(above.double(), y) - margin(below.double(), y)
        # 200 units in the last place: what is promised is then known to a per cent.
        digits = 200 * torch.finfo(torch.float16 if self.low_precision else logits.dtype).eps
        judged = ~symptoms.lost(grad) & (promised > digits * logits.abs().amax(1))
        still = (above == below).all(1) & (above == logits).all(1) & (judged | symptoms.zero(grad))
        # Few pixels of a quantised image lie within 1e-5 of a threshold, and no other model has the same output twice.
        if _mostly(still, 0.1) and not self.low_precision:
            self._find("EV206", still=int(still.sum()), examples=n)
        judged &= ~still
        wrong = judged & ((kept < 0.5 * promised) | (kept > 2 * promised))
        # Of a network with kinks a few examples lie near one; a quarter of them do not.
        if judged.sum() >= 8 and exceeds(int(wrong.sum()), int(judged.sum()), 0.25):
            self._find("EV207", wrong=int(wrong.sum()), examples=int(judged.sum()))

    def _falls(self, rows: Tensor) -> bool:
        """The first steps of PGD-20, and whether they break all: what falls at once is not overestimated."""
        x, threat = self.x[rows], self.threat[rows]
        self.watched.forget()
        self.trace, self.end = symptoms.Trace(self.y[rows]), start_in(x, threat, self.noise[rows.cpu()].child("pgd"))
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
            if lost and not self._has((code,)):
                self._find(code, lost=int(lost), examples=STEPS * n, which=f"inputs on the way of PGD-{STEPS}")
        flat = int((margin(logits, y).double() <= trace.first).sum())
        if exceeds(flat, n, 0.3):
            self._find("EV281", flat=flat, examples=n)
        one_step = move(x, x, self.grad[rows], threat, threat.eps)
        by_fgsm = self._judge(predict(self.model, one_step), rows)
        if symptoms.better(by_fgsm, by_pgd, FEW, 1e-3):
            self._find("EV282", fgsm=int(by_fgsm.sum()), pgd=int(by_pgd.sum()), examples=n)
        by_noise, outputs = torch.zeros_like(by_pgd), [logits]
        for draw in range(DRAWS):
            direction = noise.child("noise", draw).normal(tuple(x.shape[1:]), dtype=x.dtype).to(x.device)
            outputs.append(full_precision(predict(self.model, move(x, x, direction, threat, threat.eps))))
            by_noise |= self._judge(outputs[-1], rows)
        only = int((by_noise & ~by_pgd).sum())
        if only >= 3 and only > FEW * n:
            self._find("EV283", noise=only, examples=n)
        same = min((symptoms.repeated(part) for part in outputs), key=lambda mask: int(mask.sum()))
        if _mostly(same):
            self._find("EV208", same=int(same.sum()), examples=n)

    def _judge(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Which rows are misclassified, (n,); they stand no longer. NaN is no class."""
        broken = (logits.argmax(1) != self.y[rows]) & ~symptoms.lost(logits)
        self.standing[rows[broken]] = False
        return broken

    def _remedies(self) -> None:
        """A gradient that leads, where a symptom says that the model's own does not, and what it breaks."""
        rows = self.standing.nonzero().squeeze(1)
        before = len(rows)
        sure = int(symptoms.confident(self.logits[rows]).sum())
        if not before or not (self._has(MISLED) or sure > FEW * self.n):
            return
        names = [MARGIN]
        names += [LOGARITHM] if self._has(("EV224",)) else []
        names += [REPAIRED] if self._has(("EV202",)) else []
        names += [STRAIGHT] if self._has(("EV201", "EV206")) else []
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
        if after == before and queries > 0 and not self._has(("EV205",)):
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
            model = Batched(symptoms.Watched(Remedied(inner, names)), self.model.size)
            try:
                _, grad, _ = value_and_grad(model, x, ascending(margin, y))
            except (RuntimeError, TypeError):
                # A model that fixes the type of its inner tensors cannot be had in float64.
                continue
            if not _mostly(symptoms.lost(grad) | symptoms.zero(grad), 0.5):
                return model
        return None

    def _report(self, names: list[str], before: int, after: int, sure: int) -> None:
        """What the remedies broke, in the findings that called for them."""
        if exceeds(before - after, self.n, GAP) and not self._has(MISLED):
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
        if self._has(MISLED) or steps < 3:
            self.not_checked.append(
                "Accuracy at a huge radius was not checked, because gradients are known not to lead; "
                "remove the cause and evaluate again."
            )
            return
        rows = self.standing.nonzero().squeeze(1)
        x, trace = self.x[rows], symptoms.Trace(self.y[rows])
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


def ascending(loss: Loss, y: Tensor) -> Objective:
    """The objective of a loss for labels (n,)."""
    return lambda logits, rows: loss(logits, y[rows])


def _mostly(mask: Tensor, share: float = 0.05) -> bool:
    """Whether more than a share of the examples is concerned; one or two of many may be by a near tie."""
    return bool(mask.any()) and mask.float().mean().item() > share
