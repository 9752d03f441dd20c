"""The one check of what is given with a model: images, labels, ids, balls.

    y, index = check_examples(x, y, None, batch_size=256, threat=Linf(8 / 255))     # y: a tensor, an array, a list
    device, dtype = placement(model, x)
    logits = model(as_input(x[:256], device, dtype))
    check_classes(y, logits.shape[1])

Every error is a ValueError that says what was given and what is allowed.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.devices import in_float64, sent
from toughen.models.adapted import HALF
from toughen.settings import shown
from toughen.threat import Threat

SUM = 1e-2
"""How far the sum of an image's probabilities may be from 1: those of half precision, or rounded in a table, are."""

ROUNDING = 1e-6
"""How far images may lie outside [0, 1]: some decoders overshoot; it is far below one grey level (0.004)."""


def check_batch(x: Any, *, uint8: bool = True) -> None:
    """Refuse what is no batch of images (N, C, H, W), whatever their values.

    Args:
        x: the images.
        uint8: whether they may be uint8, and not floats alone.

    Raises:
        ValueError: for another type or shape.
    """
    if not isinstance(x, Tensor):
        raise ValueError(
            f"images are of type {type(x).__name__}; give a tensor (N, C, H, W), such as torch.from_numpy(x), and "
            ".permute(0, 3, 1, 2) where channels come last"
        )
    if x.dtype in HALF:
        raise ValueError(
            f"images are {x.dtype}, whose steps are too coarse for a ball to be kept; give x.float(): a model in half "
            "precision is still run in it"
        )
    if not (x.is_floating_point() or (uint8 and x.dtype == torch.uint8)) or x.ndim != 4:
        allowed = "uint8 or floats in [0, 1]" if uint8 else "floats in [0, 1], such as uint8 images divided by 255"
        raise ValueError(f"images are {x.dtype} of shape {tuple(x.shape)}; give (N, C, H, W), {allowed}")


def check_images(x: Any, *, uint8: bool = False) -> None:
    """Refuse what is no batch of images in [0, 1], (N, C, H, W).

    Args:
        x: the images.
        uint8: whether they may be uint8 as well.

    Raises:
        ValueError: for another type or shape, or values that are not finite or outside [0, 1] by more than rounding.
    """
    check_batch(x, uint8=uint8)
    if x.dtype == torch.uint8:
        return
    low, high = (x.amin().item(), x.amax().item()) if x.numel() else (0.0, 0.0)
    if not math.isfinite(low + high):
        first = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
        raise ValueError(f"image {first} of {len(x)} holds NaN or infinity; mend or leave out such images")
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"images are in [{low:.3g}, {high:.3g}] but must be in [0, 1]: divide by 255, or move the normalisation "
            "into the model with Classifier(net, mean=..., std=...)"
        )


def as_labels(y: Any, n: int, *, classes: int | None = None, soft: bool = False) -> Tensor:
    """Labels in whatever whole numbers, array or sequence they are given, as class numbers (n,).

    Args:
        y: class numbers, (n,) or (n, 1), or rows of whole numbers that are 0 but for one 1; of a tensor, an array or a
            sequence.
        n: number of images.
        classes: of the model, if that is known.
        soft: whether rows of probabilities, floats (n, K), may be given as well.

    Returns:
        int64 (n,), or the probabilities as they are; on the device of a tensor, else on the CPU.

    Raises:
        ValueError: the sentence says what was given and what is allowed: for labels of several classes an image,
            too.
    """
    given = y if isinstance(y, Tensor) else _numbers(y)
    allowed = "give class numbers (N,)" + " or probabilities (N, K)" * soft
    kind = f"labels are {given.dtype} of shape {tuple(given.shape)}"
    if given.ndim not in (1, 2) or len(given) != n or given.is_complex():
        raise ValueError(f"{kind} for {n} images; {allowed}")
    if given.is_floating_point() and not (soft and given.ndim == 2 and given.shape[1] > 1):
        remedy = "y.argmax(1)" if given.ndim == 2 and given.shape[1] > 1 else "y.long()"
        raise ValueError(f"{kind} for {n} images; {allowed}: {remedy}, if that is what they mean")
    if given.is_floating_point():
        _check_probabilities(given)
    else:
        given = _one_class_each(given.long(), kind)
    if classes is not None:
        check_classes(given, classes)
    return given


def _numbers(y: Any) -> Tensor:
    """An array or a sequence of numbers as a tensor."""
    try:
        array = np.asarray(y)
    except (TypeError, ValueError):
        # Rows of several lengths, or what lies on a device.
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"labels are {shown(y)}, which is no array of numbers; give class numbers (N,), from 0")
    # In the machine's own order and in a row, whatever file they come from.
    return torch.from_numpy(np.ascontiguousarray(array, np.float64 if array.dtype.kind == "f" else np.int64))


def _one_class_each(y: Tensor, kind: str) -> Tensor:
    if y.ndim == 1 or y.shape[1] == 1:
        return y.reshape(-1)
    if not bool((((y == 0) | (y == 1)).all(1) & (y.sum(1) == 1)).all()):
        raise ValueError(f"{kind}, whose rows do not name one class each; give class numbers (N,): each image has one")
    return y.argmax(1)


def _check_probabilities(y: Tensor) -> None:
    sums = in_float64(y.detach()).sum(1)
    wrong = ((sums - 1).abs() > SUM) | (y < 0).any(1) | ~sums.isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"labels are rows of {y.shape[1]} numbers, of which row {row} is no probabilities (its sum is "
            f"{sums[row]:.4g}); give class numbers (N,), or rows that sum to 1: an image has one class"
        )


def check_classes(y: Tensor, classes: int) -> None:
    """Refuse labels (see `as_labels`) that a model with so many classes does not know.

    Raises:
        ValueError: class numbers outside 0 .. classes - 1, or probabilities of another number of classes.
    """
    if y.ndim == 2 and y.shape[1] != classes:
        raise ValueError(f"labels are probabilities of {y.shape[1]} classes but the model has {classes}")
    if y.ndim == 1 and len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise ValueError(
            f"labels run from {int(y.min())} to {int(y.max())} but the model has classes 0 to {classes - 1}"
        )


def check_grad_mode() -> None:
    """Refuse to attack where no gradient can be had."""
    if torch.is_inference_mode_enabled():
        raise ValueError("attacks need gradients, which torch.inference_mode() rules out; use torch.no_grad()")


def check_examples(
    x: Tensor, y: Any, index: Any, batch_size: int, threat: Threat | None = None
) -> tuple[Tensor, Tensor]:
    """Refuse examples that do not fit each other, before any work is done.

    Args:
        x: images (N, C, H, W), floats in [0, 1] or uint8.
        y: classes (N,), see `as_labels`.
        index: example ids (N,), each once, likewise of a tensor, an array or a sequence; None for 0 to N - 1.
        batch_size: examples per pass, at least 1.
        threat: a ball, whose radii must be as many as the images.

    Returns:
        The classes and the ids, int64 on the CPU.

    Raises:
        ValueError: the sentence says what was given and what is allowed.
    """
    check_grad_mode()
    check_images(x, uint8=True)
    y = as_labels(y, len(x))
    if not len(x):
        raise ValueError("there are no images to evaluate; give at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    index = torch.arange(len(x)) if index is None else torch.as_tensor(index)
    if index.shape != y.shape or index.is_floating_point():
        raise ValueError(f"index is {index.dtype} of shape {tuple(index.shape)}; give {len(x)} whole numbers")
    if len(index.unique()) != len(index):
        raise ValueError(f"index holds {len(index.unique())} different ids for {len(x)} images; give each its own")
    if threat is not None and isinstance(threat.eps, Tensor) and threat.eps.ndim and len(threat.eps) != len(x):
        raise ValueError(f"the threat model has {len(threat.eps)} radii for {len(x)} images; give one, or one each")
    return y.cpu(), index.cpu().long()


def out_of_unit(x: Tensor, threat: Threat | None = None) -> tuple[str, str] | None:
    """What is seen where images or the radius (if there is one) are not in the units of [0, 1], and what to do.

    For the caller who would otherwise refuse such images with less to say. uint8 images are as they should be.
    """
    if not x.is_floating_point() or not x.numel():
        low, high = 0.0, 1.0
    else:
        low, high = x.amin().item(), x.amax().item()
    span = f"Inputs span {low:.3g}..{high:.3g}"
    if not (low >= -ROUNDING and high <= 256):
        return span, "undo the normalisation, and make it the model's first layer"
    if high > 1 + ROUNDING:
        return span, "divide the images by 255"
    if 0 < high <= 1.01 / 255:
        return span, "they were divided by 255 twice"
    if threat is None:
        return None
    eps = float(torch.as_tensor(threat.eps).max()) if len(x) else 0.0
    return (f"The radius is {eps:.3g}", f"write {eps:.3g}/255") if threat.norm == "linf" and eps > 1 else None


CUSTOMARY_L2 = 0.5 / math.sqrt(3 * 32 * 32)
"""The field's radius for CIFAR-10 as a share of the diagonal, sqrt(d), of which ImageNet's 3.0 is 1.5 times as much."""

FAR = 10
"""How many times the customary radius may be one in other units: these differ by a factor of 255."""


def check_reach(threat: Threat, shape: Sequence[int]) -> tuple[str, ...]:
    """What to say of an L2 radius for images (C, H, W) that may be meant in units of 0 to 255; mostly nothing.

    Raises:
        ValueError: the ball around any image holds all images.
    """
    radius = float(torch.as_tensor(threat.eps).max()) if torch.as_tensor(threat.eps).numel() else 0.0
    diagonal = math.sqrt(math.prod(shape))
    if threat.norm != "l2" or radius <= FAR * CUSTOMARY_L2 * diagonal:
        return ()
    write = f"in units of 0 to 255 write {radius:.6g}/255"
    if radius >= diagonal:
        raise ValueError(
            f"the L2 radius {radius:.6g} reaches every image of {'x'.join(map(str, shape))} in [0, 1], whose diagonal "
            f"is {diagonal:.4g}; give a smaller one: {write}"
        )
    return (f"the L2 radius {radius:.6g} is far above the customary {CUSTOMARY_L2 * diagonal:.2g}; {write}",)


def check_radius(threat: Threat) -> Threat:
    """A ball of radius 0 has its uses in Python; in a recipe it is a mistake, like one that holds every image."""
    radius = float(threat.eps)
    if radius <= 0 or (threat.norm == "linf" and radius > 1):
        allowed = "in (0, 1]" if threat.norm == "linf" else "positive"
        raise ValueError(f"the radius of {threat} must be {allowed}, like {threat.norm}:8/255")
    return threat


def placement(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Device of the model's first parameter or buffer, else of `x`; float64 where they are, else float32."""
    tensors = [*model.parameters(), *model.buffers()] or [x]
    kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return tensors[0].device, torch.float64 if kinds[:1] == [torch.float64] else torch.float32


def as_input(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Images as the model gets them. Values outside [0, 1] by rounding, which `check_images` lets pass, are clipped."""
    x_float = sent(x, device).to(dtype)
    if x.dtype == torch.uint8:
        # By a tensor: CUDA turns a division by a number into a multiplication, whose last bit differs from the CPU's.
        return x_float / torch.tensor(255, dtype=dtype, device=device)
    return x_float.clamp(0, 1)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as the nearest of 256 levels."""
    return (images * 255).round().to(torch.uint8)
