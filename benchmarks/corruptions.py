"""Our corruptions against imagecorruptions-imaug: the same images, the same distributions, and as fast.

    make bench-corruptions                                   # all of it; about ten minutes on one core
    python benchmarks/corruptions.py --names fog frost --data ../shared/data/cifar10

The package knows the ImageNet constants only. What is deterministic is compared pixel by pixel. What is random is
drawn many times by both; each draw gives some thirty features (moments, edges, levels, random projections), and a
feature's two samples are compared by a Kolmogorov-Smirnov test. The smallest p-value times the number of features must
stay above `BOUND` where severities agree, and lie below it where ours is one severity off or takes CIFAR's
constants: the test can fail.
"""

import argparse
import contextlib
import datetime
import io
import platform
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from toughen.corruptions import CORRUPTIONS, SEVERITIES, corrupt

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
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
BOUND = 1e-5
Pixels = NDArray[np.uint8]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The package prints and divides by zero."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one_thread() -> None:
    """For both sides: the package's OpenCV has threads of its own."""
    import cv2  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def theirs(image: Pixels, name: str, severity: int) -> Pixels:
    """What the package makes of (H, W, 3)."""
    import imagecorruptions  # pyright: ignore[reportMissingImports]

    return imagecorruptions.corrupt(image, corruption_name=name, severity=severity)


def ours(images: Pixels, name: str, severity: int, constants: str = "imagenet") -> Pixels:
    """What we make of (N, H, W, 3)."""
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return corrupt(planes, name, severity, constants=constants).permute(0, 2, 3, 1).numpy()


def photographs(size: int, data: str | None) -> Pixels:
    """(N, size, size, 3): the middle of photographs that come with scikit-image, and some of CIFAR-10 at 32 pixels."""
    from skimage import data as samples  # pyright: ignore[reportMissingImports]

    out = []
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(samples, name)())
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        out.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)))
    if data and size == 32:
        from toughen.data import load

        out.extend(load(data).test.images[:20].permute(0, 2, 3, 1).numpy())
    return np.stack(out)


def equality(name: str, images: Pixels) -> str:
    """The largest difference in grey levels and the share of values that differ, over images and severities."""
    worst, differing, values = 0, 0, 0
    for severity in SEVERITIES:
        mine = ours(images, name, severity)
        with quiet():
            other = np.stack([theirs(image, name, severity) for image in images])
        gap = np.abs(mine.astype(int) - other)
        worst, differing, values = max(worst, int(gap.max())), differing + int((gap > 0).sum()), values + gap.size
    return "equal" if not worst else f"{worst} level on {differing / values:.1e} of the values"


def features(images: Pixels, clean: Pixels) -> NDArray[np.float64]:
    """(draws, features) of draws (draws, H, W, 3) of one clean image."""
    change = images.astype(np.float64) - clean
    flat = change.reshape(len(change), -1)
    size = np.abs(flat)
    directions = np.random.default_rng(7).standard_normal((8, flat.shape[1])) / np.sqrt(flat.shape[1])
    down, across = np.diff(change, axis=1), np.diff(change, axis=2)
    diagonal = down[:, :, 1:] * across[:, 1:]
    # How much of the clean image's own steps is left.
    steps = [np.diff(clean.astype(np.float64), axis=axis) for axis in (0, 1)]
    slopes = [
        np.tensordot(np.diff(images.astype(np.float64), axis=axis + 1), step, axes=3) / (step**2).sum()
        for axis, step in enumerate(steps)
    ]
    values = [
        *change.mean(axis=(1, 2)).T,
        *change.std(axis=(1, 2)).T,
        size.mean(axis=1),
        (size**3).mean(axis=1),
        *(np.quantile(size, [0.5, 0.9, 0.99], axis=1)),
        (flat == 0).mean(axis=1),
        (images == 255).mean(axis=(1, 2, 3)),
        (images == 0).mean(axis=(1, 2, 3)),
        (down**2).mean(axis=(1, 2, 3)),
        (across**2).mean(axis=(1, 2, 3)),
        diagonal.mean(axis=(1, 2, 3)),
        change[:, 0].mean(axis=(1, 2)),
        change[:, :, -1].mean(axis=(1, 2)),
        *(flat @ directions.T).T,
        *slopes,
    ]
    return np.stack(values, axis=1)


def agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The smallest p-value over the features, times their number."""
    from scipy.stats import ks_2samp

    p = [float(np.asarray(ks_2samp(x, y, method="asymp"))[1]) for x, y in zip(a.T, b.T, strict=True)]
    return min(1.0, min(p) * len(p))


def standardised(mine: Pixels, other: Pixels) -> float:
    """Root mean square over the pixels of the difference of the means in standard errors: about 1 if they agree."""
    variance = mine.var(axis=0, ddof=1) / len(mine) + other.var(axis=0, ddof=1) / len(other)
    gap = (mine.mean(axis=0) - other.mean(axis=0)) ** 2
    # Values that hardly vary have no standard error to speak of.
    kept = variance > 1e-4
    return float(np.sqrt((gap[kept] / variance[kept]).mean())) if kept.any() else 0.0


def distribution(name: str, image: Pixels, draws: int) -> tuple[str, bool]:
    """p-values at equal severities, standardised means, p-values where they must differ; whether all is so."""
    mine, other, means = {}, {}, []
    np.random.seed(0)
    for severity in SEVERITIES:
        copies = np.repeat(image[None], draws, axis=0)
        a = ours(copies, name, severity)
        with quiet():
            b = np.stack([theirs(image, name, severity) for _ in range(draws)])
        if name == "spatter":
            # Where no drop falls the package divides 0 by 0 and gives a black image; ours stays as it is.
            black, same = (b == 0).all(axis=(1, 2, 3)), (a == image).all(axis=(1, 2, 3))
            b = np.where(black[:, None, None, None], image, b)
            a = np.where(same[:, None, None, None], image, a)
        means.append(standardised(a, b))
        mine[severity], other[severity] = features(a, image), features(b, image)
    right = [agreement(mine[s], other[s]) for s in SEVERITIES]
    wrong = [agreement(mine[s], other[t]) for s in SEVERITIES for t in (s - 1, s + 1) if t in SEVERITIES]
    for s in SEVERITIES:
        foreign = ours(np.repeat(image[None], draws, axis=0), name, s, "cifar")
        wrong.append(agreement(features(foreign, image), other[s]))
    passed = min(right) > BOUND and max(wrong) < BOUND
    text = f"p >= {min(right):.2g}; means {min(means):.2f} .. {max(means):.2f}; wrong: p <= {max(wrong):.1g}"
    return text, passed


def speed(name: str, images: Pixels, rounds: int) -> tuple[float, float, float]:
    """Images per second of ours and of theirs over the five severities, and the median of their ratios."""
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    mine, other = [], []
    for count in range(rounds + 1):
        started = time.process_time()
        for severity in SEVERITIES:
            corrupt(planes, name, severity, constants="imagenet")
        between = time.process_time()
        with quiet():
            resumed = time.process_time()
            for severity in SEVERITIES:
                for image in images:
                    theirs(image, name, severity)
            ended = time.process_time()
        # The first round compiles and fills caches.
        if count:
            mine.append((between - started) / len(images) / 5)
            other.append((ended - resumed) / len(images) / 5)
    ratio = statistics.median(b / a for a, b in zip(mine, other, strict=True))
    return 1 / statistics.median(mine), 1 / statistics.median(other), ratio


def main() -> None:
    """Compare, time and write `results/corruptions.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=CORRUPTIONS, default=list(CORRUPTIONS))
    parser.add_argument("--data", help="a folder with CIFAR-10, for images of 32 pixels beside the photographs")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["same", "speed"], help="leave the other half out; nothing is written")
    arguments = parser.parse_args()
    one_thread()
    rows = []
    for size in (32, 224):
        images = photographs(size, arguments.data)
        copies = np.resize(images, (128 if size == 32 else 8, *images.shape[1:]))
        for name in arguments.names:
            same = timed = ""
            if arguments.only != "speed":
                if name in DETERMINISTIC:
                    same = equality(name, images)
                else:
                    text, passed = distribution(
                        name, images[0], arguments.draws if size == 32 else arguments.draws // 3
                    )
                    same = f"{text}; {'pass' if passed else 'FAIL'}"
            if arguments.only != "same":
                mine, other, ratio = speed(name, copies, arguments.rounds)
                timed = f"{mine:,.0f} | {other:,.0f} | {ratio:.2f}{'' if ratio >= 1 else ' BELOW'}"
            rows.append(f"| {size} | {name} | {same} | {timed} |")
            print(rows[-1], flush=True)
    if arguments.only or arguments.names != list(CORRUPTIONS):
        return
    text = [
        "# Corruptions against imagecorruptions-imaug 1.1.5",
        "",
        f"`python benchmarks/corruptions.py --draws {arguments.draws} --rounds {arguments.rounds}"
        f"{' --data CIFAR10' if arguments.data else ''}`, {datetime.date.today()}, "
        f"{platform.processor() or platform.machine()}, one thread of two shared cores, torch {torch.__version__}, "
        f"numpy {np.__version__}. ImageNet constants, five severities.",
        "",
        "Speed is images per second over the five severities, in processor time of the process, both in one run:",
        "ours from (N, 3, H, W) tensor to tensor, theirs from array to array; the ratio is the median over rounds.",
        "`means` is the root mean square over pixels of the difference of the two mean images in standard errors,",
        "about 1 where they agree, for the severities least and most. p is the smallest Kolmogorov-Smirnov p-value",
        f"over 31 features, times 31: at equal severities the least of five, which must be above {BOUND:g}; `wrong`,",
        "where ours is one severity off or takes CIFAR's constants, the greatest of thirteen, which must be below.",
        "",
        "| px | corruption | same images | ours, 1/s | theirs, 1/s | ratio |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
        *rows,
    ]
    path = Path(__file__).parent / "results" / "corruptions.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
