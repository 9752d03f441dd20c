"""Images to look at, each beside adversarial examples of it that a file of 256 grey levels can hold.

    found = pictures(model, x, y, threats={"linf:8/255": Linf(8 / 255)}, title="The last 8", classes=names)
    found.write(folder / "pictures.npz")

What is kept is what was measured and classified: the images after rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.devices import float64_home, in_float64
from toughen.evaluation.analyses.analysis import Analysis
from toughen.evaluation.referee import measure
from toughen.evaluation.suites import step_size
from toughen.evaluation.work_unit import attacked
from toughen.models.inputs import check_examples
from toughen.models.prepared import ProgressFunction, ball_of, chunks, prepared
from toughen.noise import Stream
from toughen.outcomes import CLEAN
from toughen.threat import Linf, Threat, per_example


@dataclass(frozen=True, eq=False)
class Pictures(Analysis):
    """Images and adversarial examples of them (see `pictures`).

    Args (all else as for `Analysis`):
        title: what they are, for a heading.
        variants: for each kind of example the ball that it lies in, like "linf:8/255" or "own radius"; V of them.
        classes: the classes' names, in the order of the labels.
        radius: of each example, in pixel units (N,); 0 where none belongs to it.
        image: the images themselves, (N, C, H, W) in 0 to 255.
        clean_prediction: class predicted on `image`, (N,).
        adversarial: the examples, (V, N, C, H, W) in 0 to 255.
        prediction: class predicted on `adversarial`, (V, N).

    Raises:
        ValueError: as for `Analysis`; or there are not as many names as variants, or one stands twice.
    """

    title: str
    variants: list[str]
    classes: list[str]
    index: Annotated[np.ndarray, "int64", "N"]
    label: Annotated[np.ndarray, "int64", "N"]
    radius: Annotated[np.ndarray, "float64", "N"]
    image: Annotated[np.ndarray, "uint8", "NCHW"]
    clean_prediction: Annotated[np.ndarray, "int64", "N"]
    adversarial: Annotated[np.ndarray, "uint8", "VNCHW"]
    prediction: Annotated[np.ndarray, "int64", "VN"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({CLEAN, *self.variants}) != 1 + len(self.prediction) or len(self.variants) != len(self.prediction):
            raise ValueError(
                f"variants are {list(self.variants)}; give {len(self.prediction)} names, each once and none {CLEAN!r}"
            )

    def summary(self) -> dict[str, Any]:
        """How many images are misclassified: as they are, and in each variant."""
        columns = {CLEAN: self.clean_prediction, **dict(zip(self.variants, self.prediction, strict=True))}
        wrong = {name: int((prediction != self.label).sum()) for name, prediction in columns.items()}
        return {"n": len(self.index), "misclassified": wrong}


def pictures(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threats: Mapping[str, Threat],
    title: str,
    classes: Sequence[str],
    radius: Tensor | None = None,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: ProgressFunction | None = None,
) -> Pictures:
    """Images beside PGD examples of them in one ball or several.

    Every image is attacked, correctly classified or not. PGD starts at random and takes the suites' step size. The
    examples are rounded to the 256 grey levels, so that they stay in the ball, and measured and classified after that.

    Args (all else as for `evaluate` and `Pictures`):
        x: images (N, C, H, W), uint8.
        threats: the ball of each variant by its name, with one radius for all or one per example.
        steps: of PGD, at least 1.
        index: example ids (N,), each once, to which the random starts belong. Default: 0 to N - 1.
        progress: called with (name of the variant, examples done, N).

    Raises:
        ValueError: for arguments outside these ranges, and for NaN or infinite logits (EV203).
        Unsound: an example lies outside its ball.
    """
    if x.dtype != torch.uint8:
        raise ValueError(f"images are {x.dtype}; pictures are of the 256 grey levels of a file, so give uint8")
    if not threats:
        raise ValueError("there is no ball to attack in; give at least one, like {'linf:8/255': Linf(8 / 255)}")
    for ball in threats.values():
        check_examples(x, y, index, batch_size, ball)
    y, ids = check_examples(x, y, index, batch_size)
    label, clean, rounded, predictions = f"pgd-{steps}", [], [], []
    with prepared(model, x, y, batch_size) as classifier:
        for rows in chunks(len(x), batch_size):
            clean.append(classifier.predict(classifier.images(x[rows]), ids=ids[rows], under=CLEAN).argmax(1).cpu())
        for name, threat in threats.items():
            attack = AttackSpec(name="pgd", steps=steps, step_size=step_size(threat, steps, max(x.shape[2:])))
            for rows in chunks(len(x), batch_size, progress, name):
                images, ball = classifier.images(x[rows]), ball_of(threat, rows, classifier.device)
                noise = Stream(("pictures", seed, name), rows=ids[rows])
                labels = y[rows].to(classifier.device)
                found = attacked(attack, classifier.model, images, labels, label=label, threat=ball, noise=noise)
                levels = grey_levels(found, x[rows], ball)
                seen = classifier.images(levels)
                measure(seen, images, ball, attack=f"{label}, rounded", ids=ids[rows])
                predictions.append(classifier.predict(seen, ids=ids[rows], under=label).argmax(1).cpu())
                rounded.append(levels.cpu())
    variants = len(threats)
    return Pictures(
        title=title,
        variants=list(threats),
        classes=list(classes),
        index=ids.numpy(),
        label=y.numpy(),
        radius=np.zeros(len(x)) if radius is None else in_float64(radius).cpu().numpy(),
        image=x.cpu().numpy(),
        clean_prediction=torch.cat(clean).numpy(),
        adversarial=torch.cat(rounded).reshape(variants, *x.shape).numpy(),
        prediction=torch.cat(predictions).reshape(variants, len(x)).numpy(),
    )


def grey_levels(found: Tensor, x: Tensor, ball: Threat) -> Tensor:
    """Examples rounded to 256 levels so that they stay in their balls.

    A pixel takes the nearest level. Where that leaves the ball, a Linf one stops it at the last level inside; in any
    other those pixels that were rounded outwards the most go to their inner level, as few as will do.

    Args:
        found: examples in their balls, (N, C, H, W) in [0, 1].
        x: the images that the balls are around, (N, C, H, W) uint8.
        ball: with one radius for all or one per example.

    Returns:
        (N, C, H, W) uint8, on the host where the device has no float64.
    """
    x = x.to(float64_home(found.device))
    found = in_float64(found)
    delta, eps = found * 255 - in_float64(x), per_example(ball.eps, found)
    moved = delta.round()
    if isinstance(ball, Linf):
        # A ball whose rim is a grey level holds it, rounding notwithstanding: 1e-5 levels are 4e-8 in pixel units.
        reach = torch.as_tensor(eps * 255 + 1e-5, dtype=torch.float64, device=found.device).floor()
        return (x + moved.clamp(-reach, reach)).to(torch.uint8)
    flat, outwards = moved.flatten(1), (moved.abs() - delta.abs()).flatten(1)
    excess = flat.square().sum(1, keepdim=True) - torch.as_tensor(ball.eps * 255).to(flat).reshape(-1, 1) ** 2
    # What a pixel's inner level takes off the sum of squares.
    gain = torch.where(outwards > 0, 2 * flat.abs() - 1, 0.0)
    order = outwards.argsort(dim=1, descending=True, stable=True)
    gains = gain.gather(1, order)
    needed = (gains.cumsum(1) - gains < excess) & (gains > 0)
    back = torch.zeros_like(needed).scatter(1, order, needed)
    return (x + (flat - back * flat.sign()).reshape(x.shape)).to(torch.uint8)
