"""SPSA (Uesato et al. 2018): a black-box attack, ascent along a gradient that is estimated from logits alone.

Along random directions v of signs, (f(x + delta v) - f(x - delta v)) / (2 delta) v has the gradient as its mean up to
the third derivatives of f, so that the mean over many directions shows the way even where backpropagation shows none.

    x_adv = spsa(model, x, y, threat=Linf(8 / 255), steps=100, samples=128)
"""

import torch
from torch import Tensor, nn

from toughen.attacks.compaction import Leaving, write
from toughen.attacks.contract import LossName, attack
from toughen.devices import sent
from toughen.losses import LOSSES, Loss, hard
from toughen.models.batched import predict
from toughen.modes import attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count, Positive
from toughen.threat import Threat, of_each

# Directions that an example draws at once, and probes that are in memory at once (images; a pass may be shorter).
DIRECTIONS = 16
PROBES = 1024

# Adam's constants (Kingma & Ba 2015), those of the paper.
MOMENT, SECOND_MOMENT, TINY = 0.9, 0.999, 1e-8


def estimate(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, *, samples: int, delta: float, noise: Stream
) -> Tensor:
    """The gradient of loss(model(x), y) as the mean over random directions (algorithm 1 of the paper).

    Args:
        model: classifier, already in the mode wanted; it takes 2 samples forward passes of each example.
        x: images (N, C, H, W). Its probes leave [0, 1] by up to `delta`, as in the paper: clipped, they would bias it.
        y: what `loss` takes for these rows.
        loss: (logits, y) -> (N,), row by row.
        samples: directions.
        delta: how far a probe goes along each pixel.
        noise: stream of the directions.

    Returns:
        (N, C, H, W).
    """
    total = torch.zeros_like(x)
    for start in range(0, samples, DIRECTIONS):
        count = min(DIRECTIONS, samples - start)
        at_once = max(1, PROBES // (2 * count))
        for first in range(0, len(x), at_once):
            rows = slice(first, first + at_once)
            drawn = sent(noise[rows].child(start).uniform((count, *x.shape[1:])), x.device)
            v = (drawn >= 0).to(x.dtype).mul_(2).sub_(1)
            images = x[rows].unsqueeze(1)
            probes = torch.stack([images + delta * v, images - delta * v])
            labels = y[rows].repeat_interleave(count, 0)
            up, down = (loss(part, labels) for part in predict(model, probes.flatten(0, 2)).chunk(2))
            slope = ((up - down).to(x) / (2 * delta)).reshape(-1, count)
            # Row by row, so that the sum's order does not depend on how many examples there are.
            total[rows] += (slope[..., None, None, None] * v).sum(1)
    return total / samples


@attack
def spsa(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 100,
    samples: Count = 128,
    delta: Positive = 0.01,
    step_size: Positive = 0.01,
    loss: LossName = "margin",
    noise: Stream | None = None,
) -> Tensor:
    """Ascend an estimated gradient with Adam, projected onto the ball after each step (Uesato et al. 2018, section 4).

    A step costs an example 2 samples + 1 forward passes: the estimate's, and one at the new point. It starts at the
    clean image, as in AdverTorch (and torchattacks), where the paper says nothing.

    `delta`, `step_size` and `samples` default to Cleverhans's and AdverTorch's. These leave `steps` to the caller
    (Cleverhans) or at 1 (AdverTorch), with which nothing moves further than `step_size`; ours is 100.

    Args (all else as for `pgd`):
        threat: the ball, with one radius for all or one per example. An example with a radius of 0 costs nothing.
        steps: steps of Adam at most; a broken example takes no more.
        samples: directions per step, each with two probes. Papers that rest a verdict on SPSA take thousands.
        delta: how far probes lie from the point, per pixel.
        step_size: Adam's learning rate, in pixel units.
        loss: "margin" (the paper's), another name, or (logits, y) -> (N,), row by row.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1]: misclassified, or else the point of the highest loss found.

    Raises:
        ValueError: for the loss "kl", whose gradient at the clean image is zero.
    """
    if loss == "kl":
        raise ValueError("loss kl has a zero gradient at the clean image, where spsa starts; use loss: margin")
    function = LOSSES[loss] if isinstance(loss, str) else loss
    noise = (fixed(len(x), device=x.device) if noise is None else noise).child("spsa")
    x = x.detach()
    best, highest = x.clone(), x.new_full((len(x),), -torch.inf)
    rows = (of_each(threat.eps, x) > 0).nonzero().squeeze(1)
    clean, x_adv, labels, draws, ball = x[rows], x[rows], y[rows], noise[rows], threat[rows]
    mean, square = torch.zeros_like(clean), torch.zeros_like(clean)
    leaving = Leaving(model, every=1)
    with attacking(model, "eval"):
        for step in range(1, steps + 1):
            if not len(rows):
                break
            drawn = draws.child(step)
            grad = estimate(model, x_adv, labels, function, samples=samples, delta=delta, noise=drawn)
            mean = mean.lerp(grad, 1 - MOMENT)
            square = square.lerp(grad.square(), 1 - SECOND_MOMENT)
            scale = (square / (1 - SECOND_MOMENT**step)).sqrt() + TINY
            moved = x_adv + step_size * (mean / (1 - MOMENT**step)) / scale
            x_adv = (clean + ball.project(moved - clean)).clamp(0, 1)
            logits = predict(model, x_adv)
            gain, fooled = function(logits, labels).to(x), logits.argmax(1) != hard(labels)
            better = fooled | (gain > highest[rows])
            write(best, rows, better, x_adv)
            write(highest, rows, better, gain)
            if (stay := leaving.stay(fooled)) is not None:
                rows, clean, x_adv, labels, mean, square = (
                    part[stay] for part in (rows, clean, x_adv, labels, mean, square)
                )
                draws, ball = draws[stay], ball[stay]
    return best
