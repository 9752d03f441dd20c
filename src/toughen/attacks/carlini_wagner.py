"""The attacks of Carlini & Wagner 2017: the L2 attack of the paper, and the Linf form that one paper evaluates with.

Both move in tanh space, where every point is an image, and minimise how far the label's logit leads:

    lead(z) = max(z_y - max_{k != y} z_k + confidence, 0)

    x_adv = carlini_wagner(model, x, y, threat=L2(0.5), initial_const=100, learning_rate=0.1, steps=100)
    x_adv = carlini_wagner_linf(model, x, y, threat=Linf(8 / 255), steps=40)
"""

import torch
from torch import Tensor, nn

from toughen.attacks.compaction import Leaving, write
from toughen.attacks.contract import Length, attack, for_norm, minimal_norm
from toughen.attacks.refine import Rounds, refined
from toughen.devices import sent
from toughen.losses import clipped_margin, hard, margin
from toughen.models.batched import Objective, predict, value_and_grad
from toughen.modes import attacking
from toughen.settings import Count, NonNegative, Positive
from toughen.threat import Threat, broadcastable, per_example, row_sum

# Of the way from the middle of an interval to its ends: black and white pixels would lie at infinity in tanh space.
SMOOTHING = 0.999999
UNBOUNDED = 1e10


def _kept(rows: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    return tuple(part[rows] for part in parts)


@for_norm("l2", instead="carlini_wagner_linf")
@minimal_norm
@attack
def carlini_wagner(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 1000,
    learning_rate: Positive = 5e-3,
    initial_const: Positive = 1e-2,
    binary_search_steps: Count = 5,
    confidence: NonNegative = 0.0,
    abort_early: bool = True,
    refine: Rounds = 5,
    stop_inside: bool = False,
) -> Tensor:
    """The L2 attack of Carlini & Wagner 2017 (section VI-A), with their objective f_6.

        minimise over w    ||x'(w) - x||_2^2 + c lead(model(x'(w))),    x'(w) = (tanh(w) + 1) / 2

    by Adam from w(x), for each of `binary_search_steps` values of c: ten times the last while none has succeeded, then
    the middle between the largest that failed and the smallest that succeeded. A success is an iterate whose margin
    exceeds the confidence; the nearest of all is kept. The defaults are Cleverhans v3.1's (the paper's own code has
    learning rate 0.01, first constant 0.001, 9 values). Bilateral adversarial training evaluates with `initial_const`
    100 and 100 steps at rate 0.1, or 1000 steps at rate 0.01.

    Cost of an example that is never aborted: 1 + B (steps - 1) forwards and 1 + B max(0, steps - 2) backwards for B
    values of c: all start from the image, whose logits and gradient are computed once, and the last iterate is only
    looked at. `refine.refined` costs a found example 6 forwards more, and at most 5 forwards and a backward a round.

    Deviations from Cleverhans: the nearest success is refined at the end, unless `refine` is 0; an example is aborted
    by its own loss (there by the batch's, which is the same at its default batch size of 1); and of the iterates the
    nearest to the image itself is kept, not to the image's smoothed form, which differs by less than 1e-6 and from
    which the loss measures.

    Args (all else as for `pgd`):
        threat: an L2 threat; the radius is read with `stop_inside` alone.
        steps: iterates of each minimisation, the image among them.
        learning_rate: of Adam, in tanh space.
        initial_const: the first c.
        binary_search_steps: values of c tried. From 10 on, as in both codes, the last repeats the smallest that
            succeeded.
        confidence: by how much another logit must exceed the label's.
        abort_early: end a minimisation whose loss has fallen by less than 0.01 % in a tenth of the steps.
        refine: rounds of `refine.refined` at the end; with 0 the nearest iterate is returned as it is.
        stop_inside: an example leaves, finished, once one is found within the ball.

    Returns:
        The nearest success (N, C, H, W); the image itself where it is misclassified already, or where none was found.

    Raises:
        ValueError: for settings outside these ranges, or another norm.
    """
    labels, clean = hard(y), x.detach()
    best, nearest = clean.clone(), x.new_full((len(x),), torch.inf)
    radius = _each(threat.eps, nearest)
    const = torch.full_like(nearest, initial_const)
    lower, upper = torch.zeros_like(nearest), torch.full_like(nearest, UNBOUNDED)
    with attacking(model, "eval"):
        # Ascending min(margin, confidence) is descending the lead.
        rise, grad_at_clean, logits = value_and_grad(model, clean, _margin_up_to(confidence, labels))
        lead_at_clean, correct = (confidence - rise).to(x), logits.argmax(1) == labels
        for search in range(binary_search_steps):
            row = (correct & ~(stop_inside & (nearest <= radius))).nonzero().squeeze(1)
            if not len(row):
                break
            if search >= 9 and search + 1 == binary_search_steps:
                const = upper.clone()
            succeeded = torch.zeros_like(correct)
            target, label, c = clean[row], labels[row], const[row]
            w = _atanh((2 * target - 1) * SMOOTHING)
            # The origin of the distance is what w itself stands for: a rest of rounding, in a pixel that the model
            # does not look at, Adam would blow up to a step of full length.
            centre = point = (w.tanh() + 1) / 2
            first, second = torch.zeros_like(w), torch.zeros_like(w)
            lead, grad, previous = lead_at_clean[row], grad_at_clean[row], torch.full_like(c, torch.inf)
            gone, leaving = torch.zeros_like(row, dtype=torch.bool), Leaving(model)
            for step in range(steps):
                if step:
                    point, last = (w.tanh() + 1) / 2, step + 1 == steps
                    if last:
                        logits = predict(model, point)
                    else:
                        rise, grad, logits = value_and_grad(model, point, _margin_up_to(confidence, label))
                        lead = (confidence - rise).to(x)
                    distance = threat.size(point - target)
                    success = ~gone & (margin(logits, label) > confidence)
                    succeeded[row] = succeeded[row] | success
                    nearer = success & (distance < nearest[row])
                    write(best, row, nearer, point)
                    write(nearest, row, nearer, distance)
                    if last:
                        break
                    gone = gone | (stop_inside & (nearest[row] <= radius[row]))
                if abort_early and step % max(1, steps // 10) == 0:
                    loss = row_sum((point - centre).square()) + c * lead
                    gone, previous = gone | ~(loss <= 0.9999 * previous), loss
                stay = leaving.stay(gone, passes=min(steps - 1 - step, 2))
                if stay is not None:
                    row, target, centre, label, point, c, w, first, second, lead, grad, previous, gone = _kept(
                        stay, row, target, centre, label, point, c, w, first, second, lead, grad, previous, gone
                    )
                    if not len(row):
                        break
                slope = (2 * (point - centre) - per_example(c, w) * grad) * (1 - w.tanh().square()) / 2
                w, first, second = _adam(w, slope, first, second, step + 1, learning_rate)
            upper = torch.where(succeeded, torch.minimum(upper, const), upper)
            lower = torch.where(succeeded, lower, torch.maximum(lower, const))
            const = torch.where(upper < UNBOUNDED, (lower + upper) / 2, const * 10)
        if refine:
            row = nearest.isfinite().nonzero().squeeze(1)
            at_clean, enough = confidence - lead_at_clean[row], radius[row] if stop_inside else None
            best[row] = refined(
                model, clean[row], labels[row], best[row], at_clean,
                threat=threat[row], rounds=refine, confidence=confidence, enough=enough,
            )  # fmt: skip
    return best


def _margin_up_to(confidence: float, y: Tensor) -> Objective:
    loss = clipped_margin(confidence)
    return lambda logits, rows: loss(logits, y[rows])


def _atanh(tanh: Tensor) -> Tensor:
    """torch's own gives a pixel other last bits at another place in the batch, by how a processor's vectors end."""
    return (tanh.log1p() - (-tanh).log1p()) / 2


def _each(value: float | Tensor, like: Tensor) -> Tensor:
    """One value for each example, (N,)."""
    return sent(torch.as_tensor(value), like.device).to(like).expand_as(like)


def _adam(
    w: Tensor, slope: Tensor, first: Tensor, second: Tensor, step: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A descent step of Adam with its default constants, and the two moments after it."""
    first = first.lerp(slope, 0.1)
    second = second.lerp(slope.square(), 0.001)
    ahead, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
    return w - rate * ahead / (spread.sqrt() + 1e-8), first, second


@for_norm("linf", instead="carlini_wagner")
@attack
def carlini_wagner_linf(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 40,
    step_size: Length = None,
    confidence: NonNegative = 0.0,
    halvings: Count = 5,
    doublings: Count = 5,
) -> Tensor:
    """The Linf form of the Adversarial Robustness Toolbox (`CarliniLInfMethod`), which IAAT's table 3 calls CW-40.

        minimise over w    lead(model(x'(w))),    x'(w) = low + (high - low) (tanh(w) / s + 1) / 2,    s = 0.999999
        low = max(x - eps, 0),  high = min(x + eps, 1)

    by gradient descent with a line search: the rate is halved, up to `halvings` tries in all, until the lead falls; if
    the first try does it, the rate is doubled, up to `doublings` times, for as long as the lead goes on falling. The
    best rate is taken, the last good one is the next step's first try. An example leaves once its lead is 0.

    It shares with the paper's Linf attack (section VI-C) the tanh variable and the loss alone: it has no distance, no
    constant and no shrinking bound, stays in the given ball, and is no minimal-norm attack. IAAT ran 40 steps from a
    rate of (2 eps / 20) / 2, the default here.

    Each step costs an unbroken example one forward and one backward pass, and one forward pass a try; first of all
    comes a forward pass. On an accelerator, too, examples leave at once and none is tried for nothing: for that the
    host waits at every try, which is cheaper than a pass.

    Deviations from the toolbox: what is not broken at the end keeps its last point instead of the image; a try's lead
    is compared with the lead at the current point, also where the step before found no descent (there: with that
    step's last try); an accepted try's logits are not computed again.

    Args (all else as for `pgd`):
        threat: an Linf ball.
        steps: gradient steps, at least 1.
        step_size: first rate of the descent in tanh space, a number or (N,). Default: eps / 20.
        confidence: by how much another logit must exceed the label's before an example leaves.
        halvings: most tries at falling rates in a step.
        doublings: most tries at rising rates in a step.

    Raises:
        ValueError: for settings outside these ranges, or another norm.
    """
    eps, rate = per_example(threat.eps, x), threat.eps / 20 if step_size is None else step_size
    label, point, best = hard(y), x.detach(), x.detach().clone()
    low, high = (point - eps).clamp(min=0), (point + eps).clamp(max=1)
    width = high - low
    row, rate = torch.arange(len(x), device=x.device), _each(rate, x.new_zeros(len(x)))
    w = _atanh((2 * (point - low) / width.clamp(min=torch.finfo(x.dtype).tiny) - 1) * SMOOTHING)

    def image(w: Tensor, low: Tensor, high: Tensor) -> Tensor:
        at = low + (high - low) * (w.tanh() / SMOOTHING + 1) / 2
        return torch.minimum(torch.maximum(at, low), high)

    def fallen(way: Tensor, length: Tensor, tried: Tensor) -> Tensor:
        """Margins, up to the confidence, that a step of that length reaches, for the rows tried."""
        moved = w[tried] + per_example(length[tried], w) * way[tried]
        logits = predict(model, image(moved, low[tried], high[tried]))
        return clipped_margin(confidence)(logits, label[tried]).to(w)

    with attacking(model, "eval"):
        reached = clipped_margin(confidence)(predict(model, point), label).to(w)
        for _ in range(steps):
            stay = (reached < confidence).nonzero().squeeze(1)
            row, label, point, low, high, w, rate, reached = _kept(stay, row, label, point, low, high, w, rate, reached)
            if not len(row):
                break
            _, grad, _ = value_and_grad(model, point, _margin_up_to(confidence, label))
            way = grad * (high - low) * (1 - w.tanh().square()) / (2 * SMOOTHING)
            top, taken = reached.clone(), torch.zeros_like(rate)
            searching, doubling = torch.ones_like(row, dtype=torch.bool), torch.zeros_like(row, dtype=torch.bool)
            for tries in range(halvings):
                tried = searching.nonzero().squeeze(1)
                if not len(tried):
                    break
                values = torch.full_like(reached, -torch.inf)
                values[tried] = fallen(way, rate, tried)
                risen = searching & (values > reached)
                top, taken = torch.where(risen, values, top), torch.where(risen, rate, taken)
                doubling = risen if tries == 0 else doubling
                searching = searching & ~risen
                rate = torch.where(searching & (tries + 1 < halvings), rate / 2, rate)
            for _ in range(doublings):
                tried = doubling.nonzero().squeeze(1)
                if not len(tried):
                    break
                values = torch.full_like(reached, -torch.inf)
                values[tried] = fallen(way, rate * 2, tried)
                doubling = doubling & (values > top)
                rate = torch.where(doubling, rate * 2, rate)
                top, taken = torch.where(doubling, values, top), torch.where(doubling, rate, taken)
            w, reached = w + per_example(taken, w) * way, top
            point = torch.where(broadcastable(taken > 0, w), image(w, low, high), point)
            best[row] = point
    return best
