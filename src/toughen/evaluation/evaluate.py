"""Worst-case evaluation: the clean image first, then each attack of a suite on whatever is not yet broken.

    evaluation = evaluate(model, x, y, threat=Linf(8 / 255), suite="autoattack", folder=Path("evaluation"))
    print(evaluation.robust_accuracy, evaluation.robust_interval, evaluation.unreliable)
    evaluation.outcomes                          # one row per attack and example; every number is recomputed from it

What an attack returns is measured and classified by the evaluator itself (`referee`), twice where it is reported as
broken. Random draws belong to an example's id, so that its outcome depends neither on the batch size nor on the order
of the examples: exactly so in float64, and in float32 wherever an outcome is not marginal. With a folder, an evaluation
that was killed goes on where it was, and ends with the same table.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack
from toughen.evaluation.adaptive import Adaptive
from toughen.evaluation.audit.audit import audit as examine
from toughen.evaluation.audit.audit import check_range
from toughen.evaluation.audit.messages import RANDOM
from toughen.evaluation.plan import Plan, SideAttack, cascade
from toughen.evaluation.result import Evaluation, describe_suite
from toughen.evaluation.resume import FinishedUnits, Keep, check_folder, is_finished, recognised
from toughen.evaluation.runner import Runner, default_chunk_size, memory_explained
from toughen.evaluation.suites import Suite, check, check_norms, find, fit_classes
from toughen.evaluation.time_left import Cost, StatusCallback, cost_if_unbroken, watching
from toughen.evaluation.work_unit import EvaluationTask, LabelledImages
from toughen.losses import LOSSES
from toughen.models.adapted import as_module
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.models.hashes import hash_model, hash_tensor
from toughen.models.identity import answers_of, identity_of, threat_in_full
from toughen.models.inputs import check_batch, check_examples, check_reach
from toughen.models.prepared import PreparedModel, prepare
from toughen.parallel import ranks
from toughen.threat import Threat, as_threat


def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor | Sequence[int],
    *,
    threat: Threat | str,
    suite: str | Suite,
    seed: int = 0,
    batch_size: int = 256,
    chunk_size: int | None = None,
    independent: bool = False,
    audit: bool = True,
    index: Tensor | None = None,
    folder: Path | None = None,
    keep: Keep | None = None,
    shared: bool = False,
    progress: StatusCallback | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Accuracy on the clean images and in the worst case over a suite of attacks.

    An example is robust when it is classified correctly as it is and as every attack returned it; the first failure
    ends its part. Parameters are frozen and the model is in inference mode throughout; both are restored, gradients
    and the global random state are not touched. Computation is in float32 (float64 for a float64 model) without
    autocast.

    Args:
        model: classifier of images in [0, 1], (N, C, H, W) -> logits (N, K). Each batch is moved to the device of its
            first parameter or buffer; with neither, it stays where `x` is. Also what returns its logits in a tuple
            (first), under the name or key `logits`, or in half precision; or a plain function of images.
        x: images (N, C, H, W), floats in [0, 1] or uint8, which are divided by 255 batch by batch.
        y: classes (N,), in a tensor, an array or a sequence of whole numbers (see `inputs.as_labels`).
        threat: the ball, with one radius for all or one per example; or a text like linf:8/255.
        suite: name of a suite (`SUITES`), or attacks by label: `AttackSpec`s, or functions
            (model, x, y, *, threat, noise) -> x_adv, which may do without `threat` and `noise`; or `SideAttack`s.
        seed: of the attacks' random draws.
        batch_size: examples per pass, at least 1. Halved, and said so, where memory runs out.
        chunk_size: examples that are attacked together and kept together: those that break leave, and the passes stay
            full. Default: 1,024 images of 32 x 32 pixels, fewer larger ones, but a pass at least.
        independent: run every attack on all examples that are classified correctly, not on those not yet broken.
        audit: look for reasons why the figures would not be believed (see `evaluation.audit`); at most 100 passes of at
            most 128 examples.
        index: example ids (N,), each once. Default: 0 to N - 1.
        folder: where finished chunks and the result are kept. A folder with the same evaluation, begun or done, is
            gone on with, after a clean pass of the first chunk has shown that the model answers as it did; one with
            another, or with other files, is refused; one of which it cannot be told is renamed (see `recognise`).
        keep: also keep the adversarial examples in `folder`, as float32, or as uint8 with a check of what is left.
        shared: the ranks of the process group share the work; all of them call with the same arguments and get the
            whole result.
        progress: called about once a second and after every chunk with a `Status`.
        notes: what a reader of the result should know besides.

    Returns:
        The outcomes and the settings.

    Raises:
        ValueError: for arguments that do not fit each other or the model; for a model that returns NaN or infinite
            logits (EV203); where memory runs out with a single example in a pass (EV242); for a folder of another
            evaluation (EV271).
        Unsound: an attack returned an example outside the ball or outside [0, 1], or one that fools the model only
            in the company that it was found in (EV261).
        Locked: another process writes the folder.
    """
    started, threat = time.perf_counter(), as_threat(threat)
    model = as_module(model, kept="give a torch.nn.Module, or leave folder out" if folder is not None else "")
    plan = _planned(suite, threat, x, independent)
    examples = _checked(x, y, index, batch_size, threat)
    reach = check_reach(threat, x.shape[1:])
    chunk_size = _chunk_size(chunk_size, batch_size, x)
    if keep is not None and folder is None:
        raise ValueError(f"keep is {keep!r} but there is no folder to keep adversarial examples in; give folder")
    if folder is not None:
        check_folder(folder, shared=shared)
    identity = identity_of(
        model=hash_model(model),
        data=hash_tensor(x, examples.y, examples.index),
        threat=threat_in_full(threat),
        # A list: another order is another cascade.
        settings=list(plan.settings.items()),
        order="independent" if independent else "cascade",
        seed=seed,
        chunk_size=chunk_size,
        keep=keep,
        audit=audit,
    )
    also = {"threat": threat, **{f"attack {label}": _run_by(member) for label, member in plan.members.items()}}
    look = partial(answers_of, {"model": (model, x[:chunk_size])}, batch_size=batch_size, also=also)
    claimed = recognised(folder, identity, look, shared=shared)
    if folder is not None and is_finished(folder, shared=shared):
        return Evaluation.read(folder)
    with memory_explained():
        subject = prepare(model, x, examples.y, batch_size)
        plan = _planned(suite, threat, x, independent, subject.classes)
        # Before the model is put in inference mode: that it was not may be what is wrong.
        given = {"threat": threat, "seed": seed, "batch_size": batch_size, "index": examples.index}
        verdict = examine(model, x, examples.y, **given) if audit else None
        with (
            FinishedUnits.open(folder, claimed, keep=keep, shared=shared) as finished,
            subject.ready(),
            _for_attacks(subject, x) as (quick, passes),
            watching(
                {subject.model.model, quick.model}, progress, plan.costs(threat, x, subject.classes), len(x), passes
            ) as watch,
        ):
            task = EvaluationTask(
                subject=subject,
                quick=quick,
                examples=examples,
                threat=threat,
                seed=seed,
                passes=passes,
                strict=verdict is None or not RANDOM & set(verdict.codes),
                as_uint8=keep == "uint8",
            )
            runner = Runner(task, finished, chunk_size, shared, watch)
            outcomes = runner.run(plan.run).outcomes
            found = Evaluation(
                outcomes=outcomes,
                threat=str(threat),
                suite=plan.name,
                settings=plan.settings,
                seed=seed,
                seconds=time.perf_counter() - started + runner.earlier,
                notes=(*claimed.said, *notes, *reach, *subject.said, *plan.said, *runner.notes),
                device=str(subject.device),
                torch=torch.__version__,
                identity=finished.identity,
                audit=verdict and verdict.after(outcomes),
                idle_passes=runner.idle,
            )
            if folder is not None and (not shared or ranks.is_main()):
                found.write(folder)
                finished.finish()
    return found


@dataclass(frozen=True)
class _Planned:
    """A plan with what must be known of it beforehand.

    Args:
        name: of the suite.
        run: the plan.
        settings: of its attacks by label, for the record.
        members: its attacks by label.
        shares: of the examples not yet broken that each attacks.
        independent: whether each attacks all that are classified correctly.
        said: what a reader should know of it; often nothing.
    """

    name: str
    run: Plan
    settings: dict[str, dict[str, Any]]
    members: Suite
    shares: dict[str, float]
    independent: bool = False
    said: tuple[str, ...] = ()

    def costs(self, threat: Threat, x: Tensor, classes: int) -> Callable[[], dict[str, Cost]]:
        """What each attack costs, worked out when it is asked for."""
        return lambda: {
            label: Cost(
                cost_if_unbroken(attack, threat, channels=x.shape[1], classes=classes),
                self.shares[label],
                correct=self.independent or isinstance(attack, SideAttack),
            )
            for label, attack in self.members.items()
        }


def _planned(suite: str | Suite, threat: Threat, x: Tensor, independent: bool, classes: int | None = None) -> _Planned:
    """The plan of a suite, for so many classes where they are known."""
    if isinstance(suite, str):
        name, attacks = suite, find(suite, threat, side=max(x.shape[-2:], default=0))
    else:
        name, attacks = "custom", check_norms(check(suite), threat)
    said: tuple[str, ...] = ()
    if classes is not None:
        fitted, said = fit_classes(dict(attacks.members) if isinstance(attacks, Adaptive) else attacks, classes)
        attacks = attacks.with_attacks(fitted) if isinstance(attacks, Adaptive) else fitted
    if isinstance(attacks, Adaptive):
        if independent:
            raise ValueError(f"suite {name} follows what broke before, so it cannot be run with independent attacks")
        return _Planned(name, attacks, attacks.settings, attacks.members, attacks.shares, said=said)
    run = cascade(attacks, independent=independent)
    return _Planned(name, run, describe_suite(attacks), attacks, dict.fromkeys(attacks, 1.0), independent, said)


def _run_by(member: AttackSpec | Attack | SideAttack) -> object:
    """The functions and balls of an attack, by which it hangs on code of the user's own."""
    if isinstance(member, SideAttack):
        return member.threat, _run_by(member.attack)
    if isinstance(member, AttackSpec):
        return member.find(member.name), [LOSSES.get(str(setting)) for setting in member.settings.values()]
    return member


def _checked(x: Tensor, y: Any, index: Any, batch_size: int, threat: Threat) -> LabelledImages:
    """The examples, once they are known to fit each other and the ball."""
    check_batch(x)
    found = check_range(x, threat) if x.is_floating_point() and x.isfinite().all() and x.numel() else None
    if found is not None and not (x.amin() >= 0 and x.amax() <= 1):
        raise ValueError(str(found))
    return LabelledImages(x, *check_examples(x, y, index, batch_size, threat))


def _chunk_size(given: int | None, batch_size: int, x: Tensor) -> int:
    """Examples of a unit of work."""
    size = default_chunk_size(batch_size, x[0].numel()) if given is None else given
    if size < 1:
        raise ValueError(f"chunk_size is {size}; it must be at least 1")
    return size


@contextmanager
def _for_attacks(subject: PreparedModel, x: Tensor) -> Iterator[tuple[Batched, Passes]]:
    """The model that attacks are given, and the count of its passes together with those of the model itself."""
    quick, model = subject.folded(x), subject.model.model
    with counted(model) as passes, nullcontext() if quick.model is model else counted(quick.model, passes):
        yield quick, passes
