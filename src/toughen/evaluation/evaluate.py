"""Worst-case evaluation: the clean image first, then each attack of a suite on whatever still stands.

    evaluation = evaluate(model, x, y, threat=Linf(8 / 255), suite="autoattack", folder=Path("evaluation"))
    print(evaluation.robust_accuracy, evaluation.robust_interval, evaluation.unreliable)
    evaluation.outcomes                          # one row per attack and example; every number is recomputed from it

What an attack returns is measured and classified by the evaluator itself (`verify`), twice where it is reported as
broken. Random draws belong to an example's id, so that its outcome depends neither on the batch size nor on the order
of the examples: exactly so in float64, and in float32 wherever an outcome is not marginal. With a folder, an evaluation
that was killed goes on where it was, and ends with the same table.
"""

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from toughen import distributed, store
from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack, check_images, check_labels
from toughen.batched import Batched
from toughen.counting import counted
from toughen.evaluation.ledger import Keep, Ledger, hash_model, hash_tensor, refuse_other
from toughen.evaluation.result import RESULT, Evaluation, describe_suite
from toughen.evaluation.stages import Aside, Board, Plan, cascade
from toughen.evaluation.suites import check, find
from toughen.evaluation.units import Task, Unit, as_input
from toughen.evaluation.verify import check_logits
from toughen.modes import evaluating, frozen, plain
from toughen.outcomes import CLEAN, Outcomes
from toughen.threat import Threat

Progress = Callable[[str, int, int, float], None]
"""(attack, examples done, examples that it attempts, share of all examples not yet broken; for clean, of those done)"""


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    suite: str | Mapping[str, AttackSpec | Attack | Aside],
    seed: int = 0,
    batch_size: int = 256,
    chunk_size: int = 1024,
    independent: bool = False,
    index: Tensor | None = None,
    folder: Path | None = None,
    keep: Keep | None = None,
    shared: bool = False,
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
            (model, x, y, *, threat, noise) -> x_adv, which may do without `threat` and `noise`; or `Aside`s.
        seed: of the attacks' random draws.
        batch_size: examples per pass, at least 1. Halved, and said so, where memory runs out.
        chunk_size: examples that are attacked together and kept together: those that break leave, and the passes stay
            full. At least 1.
        independent: run every attack on all examples that are classified correctly, not on what is left standing.
        index: example ids (N,), each once. Default: 0 to N - 1.
        folder: where finished chunks and the result are kept. A folder with the same evaluation, begun or done, is
            gone on with; one with another is refused.
        keep: also keep the adversarial examples in `folder`, as float32, or as uint8 with a check of what is left.
        shared: the ranks of the process group share the work; all of them call with the same arguments and get the
            whole result.
        progress: called after every chunk, see `Progress`.

    Returns:
        The outcomes and the settings.

    Raises:
        ValueError: for arguments that do not fit each other or the model; for a model that returns NaN or infinite
            logits (EV203); for a folder of another evaluation (EV271).
        Unsound: an attack returned an example outside the ball or outside [0, 1], or one that fools the model only
            in the company that it was found in (EV261).
        Locked: another process writes the folder.
    """
    name, attacks = (
        (suite, find(suite, threat, side=max(x.shape[-2:], default=0)))
        if isinstance(suite, str)
        else ("custom", check(suite))
    )
    index = torch.arange(len(x)) if index is None else index
    _check(x, y, index, threat, batch_size, chunk_size)
    if keep is not None and folder is None:
        raise ValueError(f"keep is {keep!r} but there is no folder to keep adversarial examples in; give folder")
    model = plain(model)
    device, dtype = _placement(model, x)
    started = time.perf_counter()
    pieces = Batched(model, batch_size)
    with evaluating(model), frozen(model), torch.autocast(device.type, enabled=False):
        # Outside the count: a model that returns no logits, or other classes than the labels, is refused first.
        first = as_input(x[:2], device, dtype)
        with torch.no_grad():
            logits = model(first)
        check_logits(logits, len(first))
        check_labels(y, len(x), logits.shape[1])
        settings = describe_suite(attacks)
        identity = store.decode(
            store.encode(
                {
                    "version": importlib.metadata.version("toughen"),
                    "model": hash_model(model),
                    "data": hash_tensor(x, y, index),
                    "threat": _threat_in_full(threat),
                    "settings": settings,
                    "order": "independent" if independent else "cascade",
                    "seed": seed,
                    "chunk_size": chunk_size,
                    "dtype": str(dtype),
                    "keep": keep,
                }
            ),
            Path("identity"),
        )
        if folder is not None and (folder / RESULT).exists():
            refuse_other(folder, store.read_json(folder / RESULT).get("identity", {}), identity)
            return Evaluation.read(folder)
        with (
            counted(model) as passes,
            Ledger.open(folder, identity, keep=keep, main=not shared or distributed.is_main()) as ledger,
        ):
            ball = replace(threat, eps=threat.eps.to(device)) if isinstance(threat.eps, Tensor) else threat
            task = Task(
                pieces,
                x,
                y.cpu().long(),
                index.cpu().long(),
                ball,
                seed,
                device,
                dtype,
                passes,
                as_uint8=keep == "uint8",
            )
            runner = _Runner(task, ledger, chunk_size, shared, progress)
            board = runner.run(cascade(attacks, independent=independent))
            found = Evaluation(
                outcomes=board.outcomes,
                threat=str(threat),
                suite=name,
                settings=settings,
                seed=seed,
                seconds=time.perf_counter() - started + runner.earlier,
                notes=tuple(runner.notes),
                device=str(device),
                torch=torch.__version__,
                identity=identity,
            )
            if folder is not None and (not shared or distributed.is_main()):
                found.write(folder)
                ledger.finish()
    return found


@dataclass
class _Runner:
    """Runs a plan, unit by unit.

    Attributes:
        earlier: seconds that units took which an earlier process finished.
        notes: what a reader of the result should know.
    """

    task: Task
    ledger: Ledger
    chunk_size: int
    shared: bool
    progress: Progress | None
    earlier: float = 0.0

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def run(self, plan: Plan) -> Board:
        """All stages of a plan, the clean images first."""
        everyone = torch.arange(len(self.task.x))
        board = Board(self._stage(0, CLEAN, everyone, self.task.clean, None), self.task.index)
        for number, stage in enumerate(plan(board), start=1):
            if len(stage.rows):
                part = self._stage(number, stage.label, stage.rows, lambda rows, s=stage: self.task.run(s, rows), board)
                board.add(part, aside=stage.threat is not None)
        return board

    def _stage(
        self, number: int, label: str, rows: Tensor, work: Callable[[Tensor], Unit], board: Board | None
    ) -> Outcomes:
        """The outcomes of a stage's units, in the order of the examples, each done once by one of the ranks."""
        blocks = rows.split(self.chunk_size)
        rank, world = (distributed.rank(), distributed.world()) if self.shared else (0, 1)
        parts: dict[int, Outcomes] = {}
        done = lost = 0
        standing = self.task.index[rows if board is None else board.standing].numpy()
        for number_of_unit in range(rank, len(blocks), world):
            block = blocks[number_of_unit]
            part = parts[number_of_unit] = self._unit(f"{number:03d}-{number_of_unit:05d}", block, work)
            done += len(block)
            lost += int(np.isin(part.index[~part.survived & ~part.aside], standing).sum())
            if self.progress is not None:
                accuracy = 1 - lost / done if board is None else (len(standing) - lost) / len(self.task.x)
                self.progress(label, done, len(rows), accuracy)
        if world > 1:
            for others in distributed.from_every(parts):
                parts |= others
        return Outcomes.concatenate([parts[key] for key in sorted(parts)])

    def _unit(self, key: str, rows: Tensor, work: Callable[[Tensor], Unit]) -> Outcomes:
        """A unit's outcomes, from the ledger where it is done already."""
        found = self.ledger.get(key)
        if found is not None and np.array_equal(found[0].index, self.task.index[rows].numpy()):
            outcomes, took = found
            self.earlier += took["seconds"]
            self.notes += [note for note in took["notes"] if note not in self.notes]
            return outcomes
        started, size, notes = time.perf_counter(), self.task.model.size, []
        unit = work(rows)
        if self.task.model.size < size:
            notes = [
                f"EV241 Out of memory with {size} examples in a pass; continued with {self.task.model.size}. "
                "Logits may differ by 1e-6 from those of an undisturbed evaluation."
            ]
            self.notes += notes
        self.ledger.put(key, unit, {"seconds": time.perf_counter() - started, "notes": notes})
        return unit.outcomes


def _threat_in_full(threat: Threat) -> str:
    """The threat model as text that differs where it does."""
    return f"{threat} {hash_tensor(threat.eps)}" if isinstance(threat.eps, Tensor) else str(threat)


def _placement(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Device of the model's first parameter or buffer, else of `x`; float64 where they are, else float32."""
    tensors = [*model.parameters(), *model.buffers()] or [x]
    kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return tensors[0].device, torch.float64 if kinds[:1] == [torch.float64] else torch.float32


def _check(x: Tensor, y: Tensor, index: Tensor, threat: Threat, batch_size: int, chunk_size: int) -> None:
    if torch.is_inference_mode_enabled():
        raise ValueError("attacks need gradients, which torch.inference_mode() rules out; use torch.no_grad()")
    if x.dtype != torch.uint8 or x.ndim != 4:
        check_images(x)
    check_labels(y, len(x))
    if y.ndim != 1:
        raise ValueError(f"labels have shape {tuple(y.shape)}; an evaluation needs class numbers (N,)")
    if not len(x):
        raise ValueError("there are no images to evaluate; give at least one")
    for name, size in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if index.shape != y.shape or index.is_floating_point():
        raise ValueError(f"index is {index.dtype} of shape {tuple(index.shape)}; give {len(x)} whole numbers")
    if len(index.unique()) != len(index):
        raise ValueError(f"index holds {len(index.unique())} different ids for {len(x)} images; give each its own")
    if isinstance(threat.eps, Tensor) and threat.eps.ndim and len(threat.eps) != len(x):
        raise ValueError(f"the threat model has {len(threat.eps)} radii for {len(x)} images; give one, or one each")
