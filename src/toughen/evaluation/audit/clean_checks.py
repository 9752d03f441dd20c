"""The checks of an audit that need no threat model: of the logits of clean images, their preprocessing and gradients.

    checks = CleanChecks(model=Batched(watched, 256), watched=watched, x=x, y=y, ids=ids, noise=noise, passes=passes)
    checks.check_outputs(given)
    checks.check_preprocessing()
    checks.check_gradients(rows)
    checks.findings

What each costs an example at most (forward and backward passes) and what it may find:

    outputs         5.5  logits, twice and in other batches                        EV203, EV209, EV211-215, EV224, EV225
    preprocessing  17    other preprocessings, channel orders, orders of classes   EV222, EV223, EV228
    gradients      10    the gradient against the change of the output             EV201, EV202, EV204-EV207, EV210
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from toughen.devices import in_float64
from toughen.evaluation.audit import statistics
from toughen.evaluation.audit.findings import NONE, Finding, exceeds, finding, first_ids
from toughen.evaluation.audit.messages import CLIP
from toughen.evaluation.audit.observation import LogitsAsGiven, Observed, WatchedModel, batch_norms, measure_slope
from toughen.evaluation.audit.preprocessing import MISMATCHED, FirstNorm, Preprocessing, Trial, bypassing, coarse, finer
from toughen.losses import Loss, cross_entropy, full_precision, margin
from toughen.models.batched import Batched, Objective, predict, value_and_grad
from toughen.models.cost import Passes
from toughen.noise import Stream

# What concerns at most 2 % of the examples moves the accuracy by at most 2 points.
FEW = 0.02

# What a network has learnt (see `statistics.learnt`) from which its labels tell preprocessings apart: those that were
# trained to an end, robust ones too, have 0.35 and more; one after ten steps, 0.1.
LEARNT = 0.25

# What may come of a model that remembers what it was asked.
MEMORY = ("EV206", "EV207", "EV208", "EV212", "EV213", "EV222", "EV281", "EV282", "EV283", "EV284")


COPY = (
    "Attack a copy whose steps pass gradients on, x + (step(x) - x).detach(), and show the model what that finds: "
    "toughen.evaluation.transfer(model, copy, x, y, threat=threat)."
)
"""What to do about steps that were seen in a model."""


@dataclass(kw_only=True)
class CleanChecks:
    """Examples, a model, and what is known of the two so far.

    Attributes:
        model: the classifier in inference mode, frozen, in pieces.
        watched: the same within, which counts what is not finite.
        x: images (N, C, H, W) in [0, 1].
        y: classes (N,).
        ids: example ids (N,), on the CPU.
        noise: stream of the random draws.
        passes: the count of the model's passes.
        names: of the classes, where known.
        spent: passes of an example that are not in `passes`.
        findings: what was found.
        not_checked: what was not looked at.
        seen: what was seen of the first passes.
        batches: how few batches the first BatchNorm has met in training; 0 where they were enough, or none knows.
        logits: of the clean images, (N, K), and `grad`, the cross-entropy's gradient there.
        margin_grad: the margin's gradient at the images that were looked at, and `judged`, where it says enough.
        as_is: the trial of the images as they were given; `trials`, those of other preprocessings; `unswapped`, the
            one that explains the model; `swapped`, the same with red and blue exchanged; `best`, the better of these.
    """

    model: Batched
    watched: WatchedModel
    x: Tensor
    y: Tensor
    ids: Tensor
    noise: Stream
    passes: Passes
    names: Sequence[str] | None = None
    spent: int = 0
    findings: list[Finding] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    swapped: Trial | None = None

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.x)

    def _find(self, code: str, *, remedy: str = "", **figures: float | str) -> None:
        self.findings.append(replace(finding(code, **figures), remedy=remedy))

    def has(self, codes: Collection[str]) -> bool:
        """Whether one of these was found."""
        return any(finding.code in codes for finding in self.findings)

    def _which(self, mask: Tensor) -> str:
        return f"examples ({first_ids(self.ids[mask.cpu()].tolist())})"

    def check_outputs(self, given: LogitsAsGiven | None) -> None:
        """The logits of the clean images, and whether they are the same again."""
        with FirstNorm(self.watched.model) as norm, self.watched.observing() as self.seen:
            _, self.grad, raw = value_and_grad(self.model, self.x, ascending(cross_entropy, self.y))
        again = full_precision(predict(self.model, self.x))
        self.logits, self.batches = full_precision(raw), norm.few_batches()
        logits = self.logits
        seen = self.seen
        self.as_is = self.best = Trial.of(None, self.x, logits, norm.mismatch(), self.y)
        lost = statistics.not_finite(logits)
        if lost.any():
            self._find("EV203", lost=int(lost.sum()), examples=self.n, which=self._which(lost))
        if given is not None and mostly(statistics.differ(given.logits, logits[: len(given.logits)], 1e-3)):
            self._find("EV211", modules=len(given.names), first=given.names[0])
        if seen.autograd:
            self._find("EV214", calls=seen.autograd)
        # What kernels that add in any order do; 16 bits have their own rounding.
        rounding = 0.05 if self.seen.low_precision else 1000 * torch.finfo(logits.dtype).eps
        random = statistics.differ(logits, again, rounding)
        if mostly(random):
            self._find("EV212", differ=int(random.sum()), examples=self.n, seen=seen.of_repeats(), remedy=_settle(seen))
        elif self.n > 1:
            # TF32 does a tenth of a per cent between two kernels; batch statistics do several per cent.
            self._check_batch(max(rounding, 0.01))
        if statistics.are_constant(logits) and not (self.x == self.x[:1]).all():
            self._find("EV209", examples=self.n)
        if statistics.are_probabilities(logits):
            self._find("EV224", examples=self.n)
        elif statistics.are_log_probabilities(logits):
            self._find("EV225", examples=self.n)

    def _check_batch(self, tolerance: float) -> None:
        """Whether half of the examples, in another order, have other logits; if so, what they depend on."""
        order = torch.arange(0, self.n, 2, device=self.x.device).flip(0)
        elsewhere = full_precision(predict(self.model, self.x[order]))
        differs = statistics.differ(self.logits[order], elsewhere, tolerance)
        if not mostly(differs):
            return
        # Every other example at its place, and the others gone: copies of these are there.
        mixed = torch.arange(self.n, device=self.x.device)
        mixed[1::2] = mixed[::2][: self.n // 2].clone()
        beside = full_precision(predict(self.model, self.x[mixed]))[::2]
        figures: dict[str, float | str] = {"differ": int(differs.sum()), "examples": len(order)}
        if mostly(statistics.differ(self.logits[::2], beside, tolerance)):
            names = batch_norms(self.watched.model)
            remedy = "Make an image's logits depend on that image alone, or evaluate with a batch size of 1."
            if self.seen.normalises:
                which = f" ({', '.join(names[:3])})" if names else ""
                remedy = f"A BatchNorm normalises by the batch{which}: give it running statistics, and call eval()."
            self._find("EV213", what="the other examples of its batch", remedy=remedy, **figures)
        else:
            what = "its place in the batch, whoever the others are"
            remedy = "Make an image's logits depend on that image alone, or evaluate with a batch size of 1."
            self._find("EV213", what=what, seen=self.seen.of_repeats(), remedy=remedy, **figures)

    def note_changes(self) -> None:
        """That the model keeps something from pass to pass, where something was found that it may be behind."""
        if self.seen.changes and self.has(MEMORY):
            names = ", ".join(self.seen.changes[:3]) + (", ..." if len(self.seen.changes) > 3 else "")
            self._find("EV215", changes=names)

    def check_preprocessing(self) -> None:
        """Whether another preprocessing, order of channels or naming of the classes explains more of the predictions.

        One fault must not pass for another: what a renaming explains better than any preprocessing is a renaming, and
        whatever is left is looked for after it.
        """
        targets, renamed = self.y, self._renamed(self.as_is)
        trials = self._trials(self._others(), targets)
        best = self._best(trials, self.as_is, targets)
        if renamed is not None and renamed.right.float().mean() > best.accuracy:
            self._report_renamed(renamed, self.as_is)
            targets = self._targets(renamed)
            as_is, trials = self._again(self.as_is, targets), [self._again(trial, targets) for trial in trials]
            best = self._best(trials, as_is, targets)
            self._report_best(best, as_is, trials, targets)
        else:
            self._report_best(best, self.as_is, trials, targets)
            renamed = self._renamed(best) if best.how is not None else renamed
            if renamed is not None:
                self._report_renamed(renamed, best)
                targets = self._targets(renamed)
                best = self._again(best, targets)
        self.trials, self.unswapped = trials, best
        self.best = self._channels(best, targets)

    def _others(self) -> list[Preprocessing]:
        others = coarse(self.watched.model, self.x.shape[1])
        if self.as_is.mismatch is not None and self.as_is.mismatch > MISMATCHED:
            return others
        # Nothing can be more than 5 points better than 95 %.
        return [how for how in others if self.as_is.accuracy + how.points < 1]

    def _trials(self, hows: Sequence[Preprocessing], targets: Tensor) -> list[Trial]:
        """What the model says under other preprocessings; those that it refuses are left out."""
        found: list[Trial] = []
        for how in hows:
            x = how.apply(self.x)
            with bypassing(how.bypass), FirstNorm(self.watched.model) as norm:
                try:
                    logits = full_precision(predict(self.model, x))
                except (RuntimeError, ValueError, AssertionError):
                    continue
            if not statistics.not_finite(logits).any():
                found.append(Trial.of(how, x, logits, norm.mismatch(), targets))
        return found

    def _again(self, trial: Trial, targets: Tensor) -> Trial:
        return Trial.of(trial.how, trial.x, trial.logits, trial.mismatch, targets)

    def _best(self, trials: list[Trial], as_is: Trial, targets: Tensor) -> Trial:
        """The best of the trials that beat the images as they were given, else that; relatives of it are added."""
        if not trials:
            return as_is
        nearest = min(trials, key=Trial.rank)
        assert nearest.how is not None
        # What is meant may be a relative that is far better where this one is only a little so.
        if nearest.rank() < as_is.rank():
            tried = {trial.how.change for trial in trials if trial.how is not None}
            left = [
                how for how in finer(self.watched.model, nearest.how.family, self.x.shape[1]) if how.change not in tried
            ]
            trials += self._trials(left, targets)
        beating = [trial for trial in trials if trial.beats(as_is, targets, len(trials))]
        best = min(beating, key=Trial.rank, default=as_is)
        if self._is_young(best, targets):
            # The nearest is an accident then, and the commonest, which is tried first, the likeliest.
            best = next((trial for trial in beating if trial.is_related(best)), best)
        return best

    def _is_young(self, trial: Trial, targets: Tensor) -> str:
        """Why neither labels nor BatchNorm tell relatives apart, for a network that is not trained to an end."""
        if self.batches:
            return f"whose first BatchNorm has met {self.batches} batches only"
        return "that has hardly learnt" if statistics.learnt(trial.logits, targets) < LEARNT else ""

    def _report_best(self, best: Trial, as_is: Trial, trials: Sequence[Trial], targets: Tensor) -> None:
        if best.how is None:
            return
        said = [best.how.remedy + "."]
        if best.mismatch is not None and as_is.mismatch is not None:
            said.append(
                f"The first BatchNorm is {as_is.mismatch:.2g} away from what it was trained on as fed, "
                f"{best.mismatch:.2g} {best.how.change} (divergence; 0 is the same)."
            )
        said.append(self._how_sure(best, as_is, trials, targets))
        # Images that shrink to nothing, or that saturate the network, look all the same to it.
        self.findings = [found for found in self.findings if found.code != "EV209"]
        self._find("EV222", accuracy=as_is.accuracy, other=best.accuracy, change=best.how.change, remedy=" ".join(said))

    def _how_sure(self, best: Trial, as_is: Trial, trials: Sequence[Trial], targets: Tensor) -> str:
        """What speaks for this preprocessing and not for another one."""
        young = self._is_young(best, targets)
        like = [
            trial.name
            for trial in trials
            if trial is not best and trial.is_related(best)
            if best.alike(trial) or (young and trial.beats(as_is, targets, len(trials)))
        ]
        said = f"How sure this is: {int(best.right.sum())} of {self.n} images are right so"
        said += f", by a network {young}" if young else ""
        if not like:
            return f"{said}, and nothing else of its kind that was tried comes near."
        return f"{said}. These images do not tell it apart from {', '.join(like)}; take that of the training."

    def _renamed(self, trial: Trial) -> statistics.Renaming | None:
        found = statistics.relabelling(trial.logits.argmax(1), self.y, trial.logits.shape[1], self.names)
        # What random weights take for an order is none.
        if found is None or statistics.untrained(trial.logits, self._targets(found)):
            return None
        return found

    def _targets(self, renamed: statistics.Renaming) -> Tensor:
        """The labels (N,) as the model calls them: row k of the order is what its class k stands for."""
        return renamed.order.to(self.y.device).argsort()[self.y]

    def _report_renamed(self, renamed: statistics.Renaming, trial: Trial) -> None:
        other, order = renamed.right.float().mean().item(), renamed.order.tolist()
        some = str(order) if len(order) <= 20 else f"[{', '.join(map(str, order[:6]))}, ...]"
        said = (
            f"logits = logits[:, torch.tensor(order).argsort()] with order = {some}, the labels of the model's classes."
        )
        self._find("EV223", accuracy=trial.accuracy, other=other, change=renamed.change, remedy=said)

    def _channels(self, best: Trial, targets: Tensor) -> Trial:
        """Whether red and blue have changed places: of nearly no consequence to BatchNorm, of much to the loss."""
        if self.x.shape[1] != 3 or best.accuracy == 1 or bool((self.x[:, 0] == self.x[:, 2]).all()):
            return best
        how = best.how or Preprocessing("", "channels", lambda x: x, 0, "")
        flipped = replace(how, change="with red and blue exchanged", apply=lambda x: how.apply(x.flip(1)))
        swapped = next(iter(self._trials([flipped], targets)), None)
        self.swapped = swapped
        if swapped is None:
            return best
        nearer = cross_entropy(swapped.logits, targets) < cross_entropy(best.logits, targets)
        gain = swapped.accuracy - best.accuracy
        if gain > FEW and swapped.loss < best.loss and statistics.better(nearer, ~nearer, 0.1, 1e-4):
            figures = {"accuracy": best.accuracy, "other": swapped.accuracy, "nearer": int(nearer.sum())}
            self._find("EV228", examples=self.n, remedy="images = images.flip(1).", **figures)
            return swapped
        return best

    def check_gradients(self, rows: Tensor) -> None:
        """The gradient at the clean images, by itself and against what a tiny change does to the output."""
        x, y, logits, n = self.x[rows], self.y[rows], self.logits[rows], len(rows)
        lost, zeros = statistics.not_finite(self.grad), statistics.all_zero(self.grad)[rows]
        full = statistics.one_hot(logits) & self.seen.gradient
        if lost.any():
            self._find("EV202", lost=int(lost.sum()), examples=self.n, which=self._which(lost))
        if (zeros & full).sum() > FEW * n:
            self._find("EV205", saturated=int((zeros & full).sum()), examples=n)
        if (zeros & ~full).sum() > FEW * n:
            zero, reaches = int((zeros & ~full).sum()), self.seen.gradient
            if self.seen.low_precision and reaches:
                self._find("EV204", zero=zero, examples=n)
            else:
                figures = {} if reaches else {"gradient": NONE}
                self._find("EV201", zero=zero, examples=n, seen=self.seen.of_gradients(), **figures)
        if not self.has(("EV212", "EV224")):
            # The change of a random output, or of a probability that is 1 to the last bit, says nothing.
            self._check_slope(x, y, logits, rows)

    def _check_slope(self, x: Tensor, y: Tensor, logits: Tensor, rows: Tensor) -> None:
        """What a change of 1e-5 of every pixel does to the margin, and what the gradient promises of it."""
        n, coarse = len(rows), self.seen.low_precision
        _, self.margin_grad, _ = value_and_grad(self.model, x, ascending(margin, y))
        grad = self.margin_grad
        signs = self.noise[rows.cpu()].child("signs").uniform(tuple(x.shape[1:]), dtype=x.dtype).to(x.device).sign()
        flat = ~(grad.isfinite() & (grad != 0))
        slope = measure_slope(self.model, x, y, grad, torch.where(flat, signs, grad.sign()))
        # 200 units in the last place: what is promised is then known to a per cent.
        digits = 200 * torch.finfo(torch.float16 if coarse else logits.dtype).eps * logits.abs().amax(1)
        judged = ~statistics.not_finite(grad) & (slope.promised > digits)
        still = slope.still & (slope.above == logits).all(1) & (judged | statistics.all_zero(grad))
        # Few pixels of a quantised image lie within 1e-5 of a threshold, and no other model has the same output twice.
        if mostly(still, 0.1) and not coarse:
            remedy = COPY if self.seen.steps else ""
            self._find("EV206", still=int(still.sum()), examples=n, seen=self.seen.of_gradients(), remedy=remedy)
        judged &= ~still
        wrong = judged & ((slope.kept < 0.5 * slope.promised) | (slope.kept > 2 * slope.promised))
        # Of a network with kinks a few examples lie near one; a quarter of them do not.
        if judged.sum() >= 8 and exceeds(int(wrong.sum()), int(judged.sum()), 0.25):
            self._find("EV207", wrong=int(wrong.sum()), examples=int(judged.sum()), seen=self.seen.of_gradients())
        partly = (in_float64(flat.flatten(1)).mean(1) > 0.05).to(x.device) & ~statistics.all_zero(grad) & ~still
        if partly.sum() >= 8 and not coarse and not self.has(("EV202", "EV207")):
            self._check_flat(rows[partly], signs[partly] * flat[partly], digits[partly] / 20)
        self.judged = judged

    def _check_flat(self, rows: Tensor, direction: Tensor, rounding: Tensor) -> None:
        """What a change of those pixels alone does whose gradient is zero: nothing but rounding, where that is true."""
        x, y = self.x[rows], self.y[rows]
        moved = self._moves(x, y, direction, rounding)
        if not exceeds(int(moved.sum()), len(x), 0.25):
            return
        if self._clips(x, y, flat := direction != 0):
            figures = {"moved": int(moved.sum()), "examples": len(x), "share": in_float64(flat).mean().item()}
            self._find("EV210", **figures, seen=self.seen.of_gradients(), remedy=CLIP)
            return
        # On even ground the pixels of a window tie for its maximum, and one alone has the gradient: so once more on
        # ground that is not even.
        draw = self.noise[rows.cpu()].child("uneven").uniform(tuple(x.shape[1:]), dtype=x.dtype).to(x.device)
        x = x + 0.01 * torch.where(x < 0.5, draw.abs(), -draw.abs())
        _, grad, _ = value_and_grad(self.model, x, ascending(margin, y))
        flat = grad == 0
        moved &= self._moves(x, y, draw.sign() * flat, rounding)
        if exceeds(int(moved.sum()), len(x), 0.25):
            share = in_float64(flat).mean().item()
            self._find("EV210", moved=int(moved.sum()), examples=len(x), share=share, seen=self.seen.of_gradients())

    def _clips(self, x: Tensor, y: Tensor, flat: Tensor) -> bool:
        """Whether pixels without a gradient (n, C, H, W) are black or white and have one a hair's breadth from it."""
        bound = flat & ((x == 0) | (x == 1))
        _, grad, _ = value_and_grad(self.model, torch.where(bound, x.clamp(1e-5, 1 - 1e-5), x), ascending(margin, y))
        return bool((bound & (grad != 0)).sum() > 0.9 * flat.sum())

    def _moves(self, x: Tensor, y: Tensor, direction: Tensor, rounding: Tensor) -> Tensor:
        """Whether the margin moves with a direction (n, C, H, W) by more than rounding, (n,)."""
        return measure_slope(self.model, x, y, torch.zeros_like(x), direction).kept.abs() > rounding


def _settle(seen: Observed) -> str:
    """What to do about a model that does not answer the same twice."""
    if seen.draws:
        return "Fix the randomness, or evaluate the mean over draws: toughen.Ensemble([model] * 32)."
    return "Find what differs between two passes over the same images, and leave it out."


def ascending(loss: Loss, y: Tensor) -> Objective:
    """The objective of a loss for labels (n,)."""
    return lambda logits, rows: loss(logits, y[rows])


def mostly(mask: Tensor, share: float = 0.05) -> bool:
    """Whether more than a share of the examples is concerned; one or two of many may be by a near tie."""
    return bool(mask.any()) and mask.float().mean().item() > share
