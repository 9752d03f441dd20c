"""Worst-case evaluation: the clean image first, then each attack of a suite on whatever still stands.

    evaluation = evaluate(model, x, y, threat=Linf(8 / 255), suite="pgd-20")
    print(evaluation.robust_accuracy, evaluation.robust_interval)
    evaluation.outcomes                          # one row per attack and example; every number is recomputed from it

What an attack returns is measured and classified by the evaluator itself (`verify`). Random draws belong to an
example's id, so that its outcome depends neither on the batch size nor on the order of the examples: exactly so in
float64, and in float32 wherever an outcome is not marginal.
"""

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack, check_images, check_labels
from toughen.counting import Passes, counted
from toughen.evaluation.result import Evaluation, describe_suite
from toughen.evaluation.suites import check, find
from toughen.evaluation.verify import check_logits, measure, predict
from toughen.losses import cross_entropy, margin
from toughen.modes import attacking, evaluating, frozen, plain
from toughen.noise import Stream
from toughen.outcomes import CLEAN, Outcomes
from toughen.threat import Threat

Progress = Callable[[str, int, int, float], None]
"""(attack, examples done, examples that it attempts, share of all examples not yet broken; for clean, of those done)"""

MARGINAL = 1e-5


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    suite: str | Mapping[str, AttackSpec | Attack],
    seed: int = 0,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy on the clean images and in the worst case over a suite of attacks.

    An example is robust when it is classified correctly as it is and as every attack returned it; the first failure
    ends its part. Parameters are frozen and the model is in inference mode throughout; both are restored, gradients
    and the global random state are not touched. Computation is in float32 (float64 for a float64 model) without
    autocast.

    Args:
        model: classifier of images in [0, 1], (N, C, H, W) -> logits (N, K). Each batch is moved to the device of its
            first parameter or buffer; with neither, it stays where `x` is.
        x: images (N, C, H, W), floats in [0, 1] or uint8, which are divided by 255 batch by batch.
        y: classes (N,).
        threat: the ball, with one radius for all or one per example.
        suite: name of a suite (`SUITES`), or attacks by label: `AttackSpec`s, or functions
            (model, x, y, *, threat, noise) -> x_adv, which may do without `threat` and `noise`.
        seed: of the attacks' random draws.
        batch_size: examples per pass, at least 1.
        index: example ids (N,), each once. Default: 0 to N - 1.
        progress: called after every batch, see `Progress`.

    Returns:
        The outcomes and the settings.

    Raises:
        ValueError: for arguments that do not fit each other or the model; for a model that returns NaN or infinite
            logits (EV203).
        Unsound: an attack returned an example outside the ball or outside [0, 1].
    """
    name, attacks = (suite, find(suite, threat)) if isinstance(suite, str) else ("custom", check(suite))
    index = torch.arange(len(x)) if index is None else index
    _check(x, y, index, threat, batch_size)
    model = plain(model)
    device, dtype = _placement(model, x)
    started = time.perf_counter()
    with evaluating(model), frozen(model), torch.autocast(device.type, enabled=False):
        # Outside the count: a model that returns no logits, or other classes than the labels, is refused first.
        first = _images(x[:2], device, dtype)
        with torch.no_grad():
            logits = model(first)
        check_logits(logits, len(first))
        check_labels(y, len(x), logits.shape[1])
        with counted(model) as passes:
            ball = replace(threat, eps=threat.eps.to(device)) if isinstance(threat.eps, Tensor) else threat
            task = _Task(model, x, y.cpu().long(), index.cpu().long(), ball, seed, device, dtype, passes)
            outcomes = _cascade(task, attacks, batch_size, progress)
    return Evaluation(
        outcomes=outcomes,
        threat=str(threat),
        suite=name,
        settings=describe_suite(attacks),
        seed=seed,
        seconds=time.perf_counter() - started,
        passes=passes,
        device=str(device),
        torch=torch.__version__,
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """What is evaluated: any of its rows can be attacked at any time, with the same outcome."""

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    threat: Threat
    seed: int
    device: torch.device
    dtype: torch.dtype
    passes: Passes

    def outcomes(self, label: str, attack: AttackSpec | Attack | None, rows: Tensor) -> Outcomes:
        """The rows (N,) of `x` under one attack; None is the clean image."""
        x, y, ids = _images(self.x[rows], self.device, self.dtype), self.y[rows].to(self.device), self.index[rows]
        threat = self.threat[rows]
        if attack is None:
            x_adv, forwards, backwards = x, len(rows), 0
        else:
            before = self.passes.example_forwards, self.passes.example_backwards
            noise = Stream(("evaluate", self.seed, label), rows=ids)
            x_adv = _attacked(attack, self.model, x, y, threat=threat, noise=noise)
            forwards = self.passes.example_forwards - before[0]
            backwards = self.passes.example_backwards - before[1]
        distance = measure(x_adv, x, threat, attack=label, ids=ids)
        logits = predict(self.model, x_adv, attack=label, ids=ids)
        prediction, top = logits.argmax(1), logits.topk(2, dim=1).values
        columns = {
            "prediction": prediction,
            "survived": prediction == y,
            "distance": distance,
            "loss": cross_entropy(logits, y),
            "margin": margin(logits, y),
            "marginal": top[:, 0] - top[:, 1] < MARGINAL,
        }
        return Outcomes(
            attack=np.full(len(rows), label),
            index=ids.numpy(),
            label=self.y[rows].numpy(),
            forwards=_shares(forwards, len(rows)),
            backwards=_shares(backwards, len(rows)),
            seed=np.full(len(rows), self.seed),
            **{name: column.cpu().numpy() for name, column in columns.items()},
        )


def _cascade(
    task: _Task, attacks: Mapping[str, AttackSpec | Attack], batch_size: int, progress: Progress | None
) -> Outcomes:
    """Every attack on the examples that all before it left standing."""
    n, parts = len(task.x), []
    standing = torch.arange(n)
    for label, attack in {CLEAN: None, **attacks}.items():
        survived, broken = [], 0
        for rows in standing.split(batch_size) if len(standing) else ():
            part = task.outcomes(label, attack, rows)
            parts.append(part)
            survived.append(rows[torch.from_numpy(part.survived.copy())])
            broken += len(rows) - len(survived[-1])
            if progress is not None:
                done = sum(map(len, survived)) + broken
                accuracy = 1 - broken / done if attack is None else (len(standing) - broken) / n
                progress(label, done, len(standing), accuracy)
        standing = torch.cat(survived) if survived else standing
    return Outcomes.concatenate(parts)


def _attacked(attack: AttackSpec | Attack, model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
    """What an attack returns, without its gradient and in the type of `x`."""
    takes = inspect.signature(attack).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        given = {key: value for key, value in given.items() if key in takes}
    # Copies: an attack that writes into its input would otherwise move the image that it is measured against. The
    # context takes back whatever mode a user's own attack leaves the model in.
    with attacking(model, "eval"), torch.enable_grad():
        x_adv = attack(model, x.clone(), y.clone(), **given)
    return x_adv.detach().to(x) if isinstance(x_adv, Tensor) else x_adv


def _shares(total: int, n: int) -> np.ndarray:
    """Whole numbers (n,) that add up to the passes of a batch and differ by at most 1, larger ones first.

    Examples that a restart left out took fewer passes than their mates, which a batch's count cannot tell apart: a
    single entry is the mean over its batch, rounded, and only sums are exact.
    """
    return np.array([total // n + (position < total % n) for position in range(n)])


def _images(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A batch as the model gets it. Values outside [0, 1] by rounding, which `check_images` lets pass, are clipped."""
    x_float = x.to(device).to(dtype)
    if x.dtype == torch.uint8:
        # By a tensor: CUDA turns a division by a number into a multiplication, whose last bit differs from the CPU's.
        return x_float / torch.tensor(255, dtype=dtype, device=device)
    return x_float.clamp(0, 1)


def _placement(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Device of the model's first parameter or buffer, else of `x`; float64 where they are, else float32."""
    tensors = [*model.parameters(), *model.buffers()] or [x]
    kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return tensors[0].device, torch.float64 if kinds[:1] == [torch.float64] else torch.float32


def _check(x: Tensor, y: Tensor, index: Tensor, threat: Threat, batch_size: int) -> None:
    if torch.is_inference_mode_enabled():
        raise ValueError("attacks need gradients, which torch.inference_mode() rules out; use torch.no_grad()")
    if x.dtype != torch.uint8 or x.ndim != 4:
        check_images(x)
    check_labels(y, len(x))
    if y.ndim != 1:
        raise ValueError(f"labels have shape {tuple(y.shape)}; an evaluation needs class numbers (N,)")
    if not len(x):
        raise ValueError("there are no images to evaluate; give at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if index.shape != y.shape or index.is_floating_point():
        raise ValueError(f"index is {index.dtype} of shape {tuple(index.shape)}; give {len(x)} whole numbers")
    if len(index.unique()) != len(index):
        raise ValueError(f"index holds {len(index.unique())} different ids for {len(x)} images; give each its own")
    if isinstance(threat.eps, Tensor) and threat.eps.ndim and len(threat.eps) != len(x):
        raise ValueError(f"the threat model has {len(threat.eps)} radii for {len(x)} images; give one, or one each")
