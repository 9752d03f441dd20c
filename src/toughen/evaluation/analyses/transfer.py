"""Transfer attacks: examples made on one model, shown to others.

    transfer(model, copy, x, y, threat=Linf(8 / 255)).summary()["transfer"]
    transfer({"iaat": a, "pgd": b}, {"natural": c}, x, y, threat=Linf(8 / 255))       # one common surrogate

Source: Instance Adaptive Adversarial Training (IAAT; Balaji, Goldstein & Hoffman 2019), section 4.1, tables 1 and 2.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.evaluation.analyses.analysis import Analysis, accuracy, accuracy_with_interval
from toughen.evaluation.referee import MARGINAL, gap, measure
from toughen.evaluation.result import describe
from toughen.evaluation.suites import check, check_norms, find
from toughen.evaluation.work_unit import attacked
from toughen.models.inputs import check_examples
from toughen.models.prepared import CHUNK, PreparedModel, ProgressFunction, ball_of, chunks, prepared
from toughen.noise import Stream
from toughen.outcomes import CLEAN
from toughen.threat import Threat, as_threat

Models = nn.Module | Mapping[str, nn.Module]
"""One model, or several by name."""


@dataclass(frozen=True, eq=False)
class Transfer(Analysis):
    """Examples made on surrogates, shown to other models (see `transfer`).

    Args (all else as for `Analysis`):
        attack: the attack and its settings.
        surrogates: names of the S models that the examples were made on.
        targets: names of the T models that they were shown to.
        surrogate_clean: whether a surrogate classifies the image itself correctly, (S, N).
        surrogate_survived: whether it classifies image and example correctly, (S, N).
        distance: ||x_adv - x|| in the threat's norm, (S, N), in float64.
        clean_correct: whether a target classifies the image itself correctly, (T, N).
        survived: whether a target classifies a surrogate's example correctly, (S, T, N), whatever it says of the image.
        marginal: whether rounding may turn that verdict, (S, T, N).
    """

    threat: str
    attack: dict[str, Any]
    seed: int
    surrogates: list[str]
    targets: list[str]
    index: Annotated[np.ndarray, "int64", "N"]
    label: Annotated[np.ndarray, "int64", "N"]
    surrogate_clean: Annotated[np.ndarray, "bool", "SN"]
    surrogate_survived: Annotated[np.ndarray, "bool", "SN"]
    distance: Annotated[np.ndarray, "float64", "SN"]
    clean_correct: Annotated[np.ndarray, "bool", "TN"]
    survived: Annotated[np.ndarray, "bool", "STN"]
    marginal: Annotated[np.ndarray, "bool", "STN"]

    def robust(self, surrogate: str, target: str) -> np.ndarray:
        """Whether a target classifies both the image and the surrogate's example correctly, (N,)."""
        column = self.targets.index(target)
        return self.clean_correct[column] & self.survived[self.surrogates.index(surrogate), column]

    def summary(self) -> dict[str, Any]:
        """White-box accuracy of each surrogate, and transfer accuracy of each surrogate and target.

        "accuracy" counts an image that is misclassified without an attack as broken, as an evaluation does.
        "accuracy_on_examples" is that on the adversarial examples alone. "broken" is the share of the correctly
        classified images that the attack broke; None where there are none.
        """
        rows = zip(self.surrogates, self.surrogate_clean, self.surrogate_survived, strict=True)
        made = [
            {"surrogate": name, **accuracy_with_interval(survived), "broken": _broken(clean, survived)}
            for name, clean, survived in rows
        ]
        shown = [
            {
                "surrogate": surrogate,
                "target": target,
                **accuracy_with_interval(self.robust(surrogate, target)),
                "accuracy_on_examples": accuracy(self.survived[row, column]),
                "clean_accuracy": accuracy(self.clean_correct[column]),
                "broken": _broken(self.clean_correct[column], self.robust(surrogate, target)),
            }
            for row, surrogate in enumerate(self.surrogates)
            for column, target in enumerate(self.targets)
        ]
        return {"n": len(self.index), "white_box": made, "transfer": shown}


def _broken(clean: np.ndarray, survived: np.ndarray) -> float | None:
    return 1 - int(survived.sum()) / int(clean.sum()) if clean.any() else None


def transfer(
    target: Models,
    surrogate: Models,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat | str,
    attack: AttackSpec | None = None,
    seed: int = 0,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: ProgressFunction | None = None,
) -> Transfer:
    """Accuracy of models on adversarial examples that were made on others (IAAT, tables 1 and 2, "Transfer").

    The paper states PGD-1000 with 2 restarts on a surrogate, which is an independent copy trained by the same method
    with the same settings: a surrogate for each model, so that columns of the table are not comparable. Give several
    targets and one surrogate for figures that are. The step size is not stated; the suites' customary one is ours (and
    that of the authors' code on CIFAR). Examples are made once for each surrogate, on every image, correctly
    classified or not, and re-verified: an example outside the ball or outside [0, 1] stops the analysis. The random
    draws belong to an example's id and are the same on every surrogate.

    Args (all else as for `evaluate`):
        target: the model shown the examples, or several by name; "target" is the name of a single one.
        surrogate: the model that they are made on, or several by name; "surrogate" is the name of a single one.
        attack: how they are made; with BatchNorm in inference mode. Default: the attack of the suite "pgd-1000-r2".
        index: example ids (N,), each once, to which the random draws belong. Default: 0 to N - 1.
        progress: called with (surrogate's name, examples done, N).

    Returns:
        The verdicts of every target on every image and every surrogate's example.

    Raises:
        ValueError: no model; an attack that looks for the nearest example, wherever it lies; arguments that do not fit
            each other or a model; NaN or infinite logits (EV203).
        Unsound: the attack returned an example outside the ball or outside [0, 1].
    """
    threat = as_threat(threat)
    y, ids = check_examples(x, y, index, batch_size, threat)
    targets, surrogates = _named(target, "target"), _named(surrogate, "surrogate")
    suite = find("pgd-1000-r2", threat, side=max(x.shape[2:])) if attack is None else check({attack.name: attack})
    assert isinstance(suite, dict)
    (made_by,) = check_norms(suite, threat).values()
    assert isinstance(made_by, AttackSpec)
    if made_by.minimal_norm:
        raise ValueError(
            f"attack {made_by.name} looks for the nearest example, which fools the surrogate alone; use one that "
            "fills the ball, like pgd"
        )
    chunked = []
    with ExitStack() as stack:
        shown = [stack.enter_context(prepared(model, x, y, batch_size)) for model in targets.values()]
        sources = [stack.enter_context(prepared(model, x, y, batch_size)) for model in surrogates.values()]
        for rows in chunks(len(x), CHUNK * batch_size):
            clean = torch.stack([_verdict(classifier, x[rows], y[rows], ids[rows], CLEAN)[0] for classifier in shown])
            columns = []
            for name, source in zip(surrogates, sources, strict=True):
                ball = ball_of(threat, rows, source.device)
                noise = Stream(("transfer", seed), rows=ids[rows])
                columns.append(_column(source, shown, made_by, x[rows], y[rows], ball, noise))
                if progress is not None:
                    progress(name, int(rows[-1]) + 1, len(x))
            chunked.append((clean, *(torch.stack(column) for column in zip(*columns, strict=True))))
    names = ("clean_correct", "surrogate_clean", "surrogate_survived", "distance", "survived", "marginal")
    arrays = (torch.cat(column, -1).numpy() for column in zip(*chunked, strict=True))
    return Transfer(
        threat=str(threat),
        attack=describe(made_by),
        seed=seed,
        surrogates=list(surrogates),
        targets=list(targets),
        index=ids.numpy(),
        label=y.numpy(),
        **dict(zip(names, arrays, strict=True)),
    )


def _named(models: Models, name: str) -> dict[str, nn.Module]:
    found = dict(models) if isinstance(models, Mapping) else {name: models}
    if not found:
        raise ValueError(f"there is no {name}; give a model, or several by name")
    return found


def _verdict(classifier: PreparedModel, x: Tensor, y: Tensor, ids: Tensor, under: str) -> tuple[Tensor, Tensor]:
    """Whether images (N, C, H, W) are classified correctly, and whether rounding may turn that, (N,) on the CPU."""
    logits = classifier.predict(classifier.images(x), ids=ids, under=under)
    return logits.argmax(1).cpu() == y, (gap(logits) < MARGINAL).cpu()


def _column(
    source: PreparedModel,
    shown: list[PreparedModel],
    attack: AttackSpec,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Stream,
) -> tuple[Tensor, ...]:
    """A surrogate's verdicts on images and examples and the distances, (N,); the targets' on the examples, (T, N)."""
    images, ids = source.images(x), noise.rows
    x_adv = attacked(attack, source.model, images, y.to(source.device), label=attack.name, threat=threat, noise=noise)
    distance, _ = measure(x_adv, images, threat, attack=attack.name, ids=ids)
    clean, _ = _verdict(source, x, y, ids, CLEAN)
    correct, _ = _verdict(source, x_adv, y, ids, attack.name)
    survived, marginal = zip(*(_verdict(classifier, x_adv, y, ids, attack.name) for classifier in shown), strict=True)
    return clean, clean & correct, distance.cpu(), torch.stack(survived), torch.stack(marginal)
