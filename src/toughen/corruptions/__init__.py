"""The 19 corruptions of Hendrycks and Dietterich 2019 at five severities, for images of any size.

    dim = corrupt(images, "fog", 3)                       # (N, C, H, W) uint8, as `images`
    same = corrupt(images[7:], "fog", 3, ids=range(7, len(images)))       # exactly dim[7:]

What is random in an image is a pure function of (seed, name, severity, the example's id), so that it depends on no
batch mate. Results are *generated*: the published files were made unseeded and cannot be made again bit by bit.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from toughen.corruptions.base import Corruption
from toughen.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from toughen.corruptions.colour import brightness, contrast, saturate
from toughen.corruptions.constants import SETS
from toughen.corruptions.digital import elastic_transform, jpeg_compression, pixelate
from toughen.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from toughen.corruptions.spatter import spatter
from toughen.corruptions.weather import fog, frost, snow
from toughen.noise import derive
from toughen.settings import known

__all__ = ["CORRUPTIONS", "EXTRA", "MAIN", "REGISTRY", "SEVERITIES", "constants_for", "corrupt"]

REGISTRY: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}
CORRUPTIONS = tuple(REGISTRY)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
MAIN = tuple(name for name in CORRUPTIONS if name not in EXTRA)
SEVERITIES = (1, 2, 3, 4, 5)

# Values of pixels that are worked on at once: what a core keeps close to it.
BLOCK = 1 << 17
SMALLEST = 8


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    constants: str | None = None,
    seed: int = 0,
    ids: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Corrupt images.

    Args:
        images: (N, C, H, W) uint8, C 1 or 3, on any device; sides of 8 pixels or more.
        name: one of `CORRUPTIONS`.
        severity: 1 .. 5.
        constants: "cifar" or "imagenet": whose strengths; None takes CIFAR's for sides up to 64 pixels and ImageNet's
            above.
        seed: of the draws.
        ids: N numbers that say which example each image is; its position if None.

    Returns:
        (N, C, H, W) uint8 on the device of `images`.

    Raises:
        ValueError: for an unknown name, severity or set of constants, and for images of another kind.
    """
    function = REGISTRY[known(name, CORRUPTIONS, "corruption")]
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}; allowed: 1, 2, 3, 4, 5")
    check_corruptible(images)
    numbers = range(len(images)) if ids is None else [int(i) for i in ids]
    if len(numbers) != len(images):
        raise ValueError(f"{len(images)} images but {len(numbers)} ids; give one id per image")
    chosen = constants_for(images.shape[-2:]) if constants is None else known(constants, SETS, "set of constants")
    strength = SETS[chosen][name][severity - 1]
    pixels = images.cpu().contiguous().numpy()
    out = np.empty_like(pixels)
    size = max(1, BLOCK // max(1, pixels[:1].size))
    for start in range(0, len(pixels), size):
        block = slice(start, start + size)
        keys = ((seed, name, severity, number) for number in numbers[block])
        rngs = (np.random.default_rng(derive("corruption", *key)) for key in keys)
        out[block] = function(pixels[block], strength, rngs)
    return torch.from_numpy(out).to(images.device)


def constants_for(shape: Sequence[int]) -> str:
    """Whose strengths suit images of this height and width: "cifar" up to 64 pixels, "imagenet" above."""
    return "cifar" if max(shape) <= 64 else "imagenet"


def check_corruptible(images: Tensor) -> None:
    """Say what is wrong with images that cannot be corrupted."""
    allowed = "give a uint8 tensor (N, C, H, W) with 1 or 3 channels"
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"the images to corrupt are {kind}; {allowed}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"the images to corrupt have shape {tuple(images.shape)}; {allowed}")
    if min(images.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"the images to corrupt are {images.shape[-2]} x {images.shape[-1]} pixels; "
            f"the corruptions need {SMALLEST} x {SMALLEST} or more"
        )
