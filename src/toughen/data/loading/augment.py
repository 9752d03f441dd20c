"""Augmentation as tensor operations on whole batches: padding and cropping, and mirroring.

Everything runs on the device that holds the images, on any dtype (on uint8 before the conversion to float, which moves
a quarter of the bytes), and without a loop over examples.

    noise = Stream((seed, "augment", step), rows=torch.arange(128), block=128)
    x = augment(images, noise, pad=4, flip=True)                 # the usual CIFAR augmentation
    x = pad_and_crop(images, torch.full((128, 2), 4), 4)         # offset = pad: the identity
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from toughen.noise import Stream

PAD_MODES = ("constant", "reflect")


def pad_and_crop(x: Tensor, offsets: Tensor, pad: int, mode: str = "constant") -> Tensor:
    """Each image padded by `pad` on all sides and cropped to its old size at an offset of its own.

    out[n, c, i, j] = padded[n, c, i + offsets[n, 0], j + offsets[n, 1]]; an offset equal to `pad` is the identity.

    Args:
        x: (N, C, H, W), any dtype.
        offsets: (N, 2) int64 in 0 .. 2 * pad, top and left of each crop in the padded image, on x's device. The range
            is not checked, because that would make the host wait for the device.
        pad: pixels added on each side, at least 0.
        mode: what is added: "constant" zeros, or "reflect" the image mirrored at its border pixels.

    Returns:
        (N, C, H, W), dtype of x.

    Raises:
        ValueError: `offsets` has another shape, or `check_padding` refuses.
    """
    N, C, H, W = x.shape
    check_padding(pad, mode, H, W)
    if offsets.shape != (N, 2):
        raise ValueError(f"offsets of shape {tuple(offsets.shape)} came with {N} images; give one of shape ({N}, 2).")
    if pad == 0:
        return x
    padded = F.pad(x, (pad,) * 4) if mode == "constant" else _reflect(x, pad)
    top = offsets[:, :1] + torch.arange(H, device=x.device)
    left = offsets[:, 1:] + torch.arange(W, device=x.device)
    # One gather over flattened pixels: five times faster than indexing by (image, channel, row, column).
    pixel = (top[:, :, None] * (W + 2 * pad) + left[:, None, :]).reshape(N, 1, H * W)
    return padded.flatten(2).gather(2, pixel.expand(N, C, H * W)).reshape(N, C, H, W)


def flip(x: Tensor, mask: Tensor) -> Tensor:
    """The images chosen by `mask` mirrored left to right, the others as they are.

    Args:
        x: (N, C, H, W), any dtype.
        mask: (N,) bool, on x's device.

    Returns:
        (N, C, H, W), dtype of x.
    """
    return torch.where(mask[:, None, None, None], x.flip(3), x)


_mirror = flip  # `augment` has an argument of the same name


def augment(x: Tensor, noise: Stream, *, pad: int = 0, flip: bool = False, mode: str = "constant") -> Tensor:
    """Random crops and mirror images, drawn for each image on its own.

    Args:
        x: (N, C, H, W), any dtype.
        noise: a stream with N rows on x's device; crops are drawn from its child "crop", mirroring from "flip".
        pad: pixels of padding before the crop; 0 for no crop.
        flip: whether each image is mirrored with probability 1/2.
        mode: the padding of `pad_and_crop`.

    Returns:
        (N, C, H, W), dtype of x.

    Raises:
        ValueError: `check_padding` refuses.
    """
    check_padding(pad, mode, *x.shape[2:])
    if pad:
        x = pad_and_crop(x, noise.child("crop").integers(2 * pad + 1, (2,)), pad, mode)
    return _mirror(x, noise.child("flip").integers(2).bool()) if flip else x


def check_padding(pad: int, mode: str, height: int, width: int) -> None:
    """Refuse a padding that images of this size cannot have.

    Raises:
        ValueError: `pad` is negative, `mode` is unknown, or a reflection would reach beyond the image.
    """
    if mode not in PAD_MODES:
        raise ValueError(f"Padding mode {mode!r} is not known; give one of {', '.join(PAD_MODES)}.")
    if pad < 0:
        raise ValueError(f"pad is {pad}, but pixels of padding must be 0 or more.")
    if mode == "reflect" and pad >= min(height, width):
        raise ValueError(
            f"pad is {pad}, but reflection of {height}x{width} images allows at most {min(height, width) - 1}; "
            "give less or take mode constant."
        )


def _reflect(x: Tensor, pad: int) -> Tensor:
    # By indexing, because F.pad reflects no integers.
    for dim in (2, 3):
        last = x.shape[dim] - 1
        place = torch.arange(-pad, last + 1 + pad, device=x.device).abs()
        x = x.index_select(dim, last - (last - place).abs())
    return x
