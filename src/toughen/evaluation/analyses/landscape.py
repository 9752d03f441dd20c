"""What the loss looks like around an image, and what its large perturbations look like.

    loss_surface(model, x[:2], y[:2], radius=8 / 255, directions="adversarial").write(folder / "surface.npz")
    weakly_bounded(model, x[-9:], y[-9:]).write(folder / "weakly-bounded.npz")

Source: Adversarial training for free (Shafahi et al. 2019), section 6, figures 2 and 3.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.devices import in_float64
from toughen.evaluation.analyses.analysis import Analysis
from toughen.evaluation.referee import measure
from toughen.losses import cross_entropy
from toughen.models.batched import value_and_grad
from toughen.models.inputs import check_examples
from toughen.models.prepared import PreparedModel, ProgressFunction, chunks, prepared
from toughen.noise import Stream
from toughen.outcomes import CLEAN
from toughen.threat import Linf

Directions = Literal["adversarial", "rademacher"]


@dataclass(frozen=True, eq=False)
class LossSurface(Analysis):
    """Cross-entropy on a plane through each image (see `loss_surface`).

    Args (all else as for `Analysis`):
        directions: "adversarial" or "rademacher", which the second direction is.
        radius: half the side of the plane, in pixel units.
        offsets: (P,), from -radius to radius, exactly 0 in the middle: the values of e1 and of e2.
        first: the first direction of each image, random signs (N, C, H, W).
        second: its second, signs of the gradient or random ones (N, C, H, W).
        loss: cross-entropy at x + offsets[i] first + offsets[j] second, (N, P, P) by i and j.
        prediction: the class predicted there, (N, P, P).
    """

    directions: str
    radius: float
    seed: int
    index: Annotated[np.ndarray, "int64", "N"]
    label: Annotated[np.ndarray, "int64", "N"]
    offsets: Annotated[np.ndarray, "float64", "P"]
    first: Annotated[np.ndarray, "int8", "NCHW"]
    second: Annotated[np.ndarray, "int8", "NCHW"]
    loss: Annotated[np.ndarray, "float64", "NPP"]
    prediction: Annotated[np.ndarray, "int64", "NPP"]

    def summary(self) -> dict[str, Any]:
        """For each image the loss in the middle, and the lowest and the highest."""
        middle = len(self.offsets) // 2
        rows = [
            {
                "index": int(number),
                "middle": float(loss[middle, middle]),
                "min": float(loss.min()),
                "max": float(loss.max()),
            }
            for number, loss in zip(self.index, self.loss, strict=True)
        ]
        return {"n": len(self.index), "images": rows}


def loss_surface(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    directions: Directions = "adversarial",
    points: int = 51,
    seed: int = 0,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: ProgressFunction | None = None,
) -> LossSurface:
    """CE(model(x + e1 d1 + e2 d2), y) on a square grid of (e1, e2) in [-radius, radius]^2 (Free, figure 3).

    The paper states the first two validation images, the cross-entropy, d1 a random (Rademacher) direction, and d2
    either "one adversarial direction" (a, b) or a second random one (c, d). Our choices, where it is silent:

    - d2 adversarial is the sign of the gradient at x, so that d1 and d2 have the same length, 1 in Linf, and the point
      (0, eps) is the FGSM example of radius eps. A pixel without a gradient stays where it is.
    - The extent and the number of points are settings.
    - Points are not clipped to [0, 1]: a plane that is bent at the box would show kinks that the model does not have.
      Towards the rim the model is thus asked about pixels slightly outside [0, 1].

    Args (all else as for `evaluate`):
        x: images (N, C, H, W), floats in [0, 1] or uint8; each costs points^2 forward passes.
        radius: half the side of the square, in pixel units, positive.
        directions: what d2 is, "adversarial" or "rademacher".
        points: points along a side, odd and at least 3, so that the image itself is one.
        batch_size: grid points per pass, at least 1.
        index: example ids (N,), each once, to which the random directions belong. Default: 0 to N - 1.
        progress: called with ("loss surface", images done, N).

    Raises:
        ValueError: for arguments outside these ranges, and for NaN or infinite logits (EV203).
    """
    y, ids = check_examples(x, y, index, batch_size)
    if directions not in get_args(Directions):
        raise ValueError(f"directions is {directions!r}; it must be one of {', '.join(get_args(Directions))}")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points is {points}; give an odd number of at least 3, so that the image itself is a point")
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius is {radius}; give a positive number in pixel units, like 8/255")
    half = points // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float64) / half * radius
    losses, predictions, firsts, seconds = [], [], [], []
    with prepared(model, x, y, batch_size) as classifier:
        for row in chunks(len(x), 1, progress, "loss surface"):
            image, label, number = classifier.images(x[row]), y[row], ids[row]
            noise = Stream(("loss-surface", seed), rows=number)
            first = _signs(noise.child("first"), image)
            second = _signs(noise.child("second"), image)
            if directions == "adversarial":
                second = _uphill(classifier, image, label)
            loss, prediction = _on_grid(classifier, image, label, number, first, second, offsets)
            losses.append(loss.reshape(points, points))
            predictions.append(prediction.reshape(points, points))
            firsts.append(first[0])
            seconds.append(second[0])
    return LossSurface(
        directions=directions,
        radius=float(radius),
        seed=seed,
        index=ids.numpy(),
        label=y.numpy(),
        offsets=offsets.numpy(),
        first=torch.stack(firsts).cpu().numpy(),
        second=torch.stack(seconds).cpu().numpy(),
        loss=torch.stack(losses).numpy(),
        prediction=torch.stack(predictions).numpy(),
    )


def _signs(noise: Stream, image: Tensor) -> Tensor:
    """Independent signs of the shape of an image (1, C, H, W)."""
    return (noise.integers(2, tuple(image.shape[1:])) * 2 - 1).to(image)


def _uphill(classifier: PreparedModel, image: Tensor, label: Tensor) -> Tensor:
    there = label.to(classifier.device)
    _, grad, _ = value_and_grad(classifier.model, image, lambda logits, rows: cross_entropy(logits, there[rows]))
    return Linf(1.0).steepest(grad)


def _on_grid(
    classifier: PreparedModel,
    image: Tensor,
    label: Tensor,
    number: Tensor,
    first: Tensor,
    second: Tensor,
    offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and prediction at every point of the grid, (P^2,), a pass's worth of images at a time."""
    grid, parts = torch.cartesian_prod(offsets, offsets), []
    for rows in chunks(len(grid), classifier.model.size):
        e1, e2 = grid[rows].to(image).reshape(-1, 2, 1, 1, 1).unbind(1)
        logits = classifier.predict(
            image + e1 * first + e2 * second, ids=number.expand(len(rows)), under="loss surface"
        )
        parts.append((cross_entropy(logits, label.to(logits.device).expand(len(rows))), logits.argmax(1)))
    loss, prediction = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return loss.double(), prediction


@dataclass(frozen=True, eq=False)
class WeaklyBounded(Analysis):
    """Largely perturbed examples to look at (see `weakly_bounded`).

    Args (all else as for `Analysis`):
        eps: Linf radius in pixel units.
        steps: of BIM.
        step_size: of BIM, in pixel units.
        clean: the images themselves, (N, C, H, W) in [0, 1].
        images: the examples, (N, C, H, W) in [0, 1].
        images_uint8: the examples in 0 to 255, likewise in the ball.
        clean_prediction: class predicted on `clean`, (N,).
        prediction: class predicted on `images`, (N,).
        prediction_uint8: class predicted on `images_uint8`, (N,).
        distance: Linf distance of `images` from the image that the model was given, (N,), in float64.
        distance_uint8: that of `images_uint8`, (N,).
    """

    eps: float
    steps: int
    step_size: float
    index: Annotated[np.ndarray, "int64", "N"]
    label: Annotated[np.ndarray, "int64", "N"]
    clean: Annotated[np.ndarray, "float32", "NCHW"]
    images: Annotated[np.ndarray, "float32", "NCHW"]
    images_uint8: Annotated[np.ndarray, "uint8", "NCHW"]
    clean_prediction: Annotated[np.ndarray, "int64", "N"]
    prediction: Annotated[np.ndarray, "int64", "N"]
    prediction_uint8: Annotated[np.ndarray, "int64", "N"]
    distance: Annotated[np.ndarray, "float64", "N"]
    distance_uint8: Annotated[np.ndarray, "float64", "N"]

    def summary(self) -> dict[str, Any]:
        """How many images are misclassified: as they are, and as either kind of example."""
        columns = {"clean": self.clean_prediction, "images": self.prediction, "images_uint8": self.prediction_uint8}
        wrong = {name: int((prediction != self.label).sum()) for name, prediction in columns.items()}
        return {"n": len(self.index), "misclassified": wrong}


def weakly_bounded(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 30 / 255,
    steps: int = 50,
    step_size: float = 2 / 255,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: ProgressFunction | None = None,
) -> WeaklyBounded:
    """BIM examples of a large radius, whose look tells what a model has learnt (Free, section 6, figure 2).

    The paper states BIM (no random start), 50 steps of 2/255 at an Linf eps of 30/255, on the last 9 validation images:
    give those as `x`. Every image is attacked, correctly classified or not. The examples are kept in float32 and, each
    pixel moved to the nearest of the 256 grey levels that lies in the ball, in uint8; what is kept is what was measured
    and classified.

    Args (all else as for `evaluate`):
        eps: Linf radius, at least half a grey level (0.5/255), below which the ball may hold no uint8 image.
        steps: of BIM, at least 1.
        step_size: of BIM, in pixel units.
        progress: called with ("bim", examples done, N).

    Raises:
        ValueError: for arguments outside these ranges, and for NaN or infinite logits (EV203).
    """
    y, ids = check_examples(x, y, index, batch_size)
    if not 0.5 / 255 <= eps < float("inf"):
        raise ValueError(f"eps is {eps}; give at least 0.5/255, so that an image of 256 grey levels lies in the ball")
    attack, ball = AttackSpec(name="bim", steps=steps, step_size=step_size), Linf(eps)
    parts = []
    with prepared(model, x, y, batch_size) as classifier:
        for rows in chunks(len(x), batch_size, progress, "bim"):
            images = classifier.images(x[rows])
            # Kept in float32, so judged in float32, whatever the model computes in.
            found = attack(classifier.model, images, y[rows].to(classifier.device), threat=ball).float()
            levels = _grey_levels(found, images, eps)
            seen = {CLEAN: images, "bim": found, "bim, uint8": classifier.images(levels)}
            logits = [classifier.predict(seen[under], ids=ids[rows], under=under) for under in seen]
            distances = [
                measure(seen[under].to(images), images, ball, attack=under, ids=ids[rows])[0]
                for under in ("bim", "bim, uint8")
            ]
            predictions = [column.argmax(1) for column in logits]
            parts.append((images.float(), found, levels, *predictions, *distances))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    names = ("clean", "images", "images_uint8", "clean_prediction", "prediction", "prediction_uint8", "distance")
    arrays = dict(zip((*names, "distance_uint8"), columns, strict=True))
    return WeaklyBounded(
        eps=float(eps), steps=steps, step_size=float(step_size), index=ids.numpy(), label=y.numpy(), **arrays
    )


def _grey_levels(found: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest uint8 images that lie in the ball."""
    exact = in_float64(images)
    # A ball whose rim is a grey level holds it, rounding notwithstanding: 1e-5 levels are 4e-8 in pixel units.
    low, high = ((exact - eps) * 255 - 1e-5).ceil(), ((exact + eps) * 255 + 1e-5).floor()
    levels = (in_float64(found) * 255).round()
    return torch.minimum(torch.maximum(levels, low), high).clamp(0, 255).to(torch.uint8)
