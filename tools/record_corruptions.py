"""What imagecorruptions-imaug 1.1.5 makes of a few small images, frozen for the tests.

    pip install imagecorruptions-imaug==1.1.5 && python tools/record_corruptions.py

Writes tests/frozen/corruptions.npz: the clean images and, under "name/severity", the result of each deterministic
corruption, as arrays (N, H, W, 3). The images are made here, so that no licence but ours holds for them.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)


def images() -> NDArray[np.uint8]:
    """Three of 40 x 48 pixels: smooth colours, flat patches with black and white among them, noise."""
    rng = np.random.default_rng(20)
    y, x = np.mgrid[:40, :48] / 48
    smooth = np.stack([np.sin(5 * x + 2 * y), np.cos(4 * y - x), np.sin(9 * x * y)], axis=2) * 127 + 128
    patches = rng.integers(0, 6, (5, 6, 3)).repeat(8, axis=0).repeat(8, axis=1) * 51
    noise = rng.integers(0, 256, (40, 48, 3))
    return np.stack([smooth, patches, noise]).astype(np.uint8)


def main() -> None:
    """Record."""
    from imagecorruptions import corrupt  # pyright: ignore[reportMissingImports]

    clean = images()
    arrays = {"clean": clean}
    for name in DETERMINISTIC:
        for severity in range(1, 6):
            arrays[f"{name}/{severity}"] = np.stack(
                [corrupt(image, corruption_name=name, severity=severity) for image in clean]
            )
    path = Path(__file__).parents[1] / "tests" / "frozen" / "corruptions.npz"
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
