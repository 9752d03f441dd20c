"""One of several ranks that share evaluations: `python ranks.py FOLDER`, with torchrun's variables set.

Every rank writes the table that it was given; the folder of an evaluation is the first rank's to write.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toughen.attacks import ATTACKS
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.work_unit import EvaluationTask
from toughen.parallel import ranks
from toughen.storage import files
from toughen.threat import Linf, Threat
from toys import labels, network, photographs, spec

SETTINGS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 3, "restarts": 2},
    "apgd": {"steps": 4},
    "fab": {"steps": 2, "stop_inside": True},
    "square": {"queries": 10},
}
MANY = 51
SUITE = {name: spec(name, **settings) for name, settings in SETTINGS.items() if name in ATTACKS}
# Units of four: fewer than ranks, one each, and an odd number of them, the last one short.
SIZES = {"one": 1, "two": 5, "seven": 7, "odd": MANY}


class Stopped(Exception):
    """Thrown instead of a unit's work."""


def run(n: int, folder: Path | None, dtype: torch.dtype = torch.float64, **changes: Any) -> Evaluation:
    model, x = network(dtype=dtype), photographs(n)
    y = labels(model, x.to(dtype) / 255)
    threat: Threat = Linf(torch.linspace(1, 4, n, dtype=dtype) / 255)
    # One of them with the audit, which takes longer than the rest.
    given = {"threat": threat, "suite": SUITE, "chunk_size": 4, "batch_size": 4, "shared": True, "audit": n == 7}
    given |= changes
    return evaluate(model, x, y, folder=folder, **given)


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def stop_after(units: int) -> None:
    """Let the second unit of the first attack be this rank's last; all ranks stop at the same place."""
    clean, attacked, worked = EvaluationTask.clean, EvaluationTask.run, []

    def note() -> None:
        if len(worked) == units:
            raise Stopped
        worked.append(1)

    EvaluationTask.clean = lambda self, rows: (note(), clean(self, rows))[1]
    EvaluationTask.run = lambda self, stage, rows: (note(), attacked(self, stage, rows))[1]
    try:
        run(MANY, OUT / "resumed", keep="float32")
    except Stopped:
        pass
    finally:
        EvaluationTask.clean, EvaluationTask.run = clean, attacked


OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def main() -> None:
    mine = OUT / f"rank-{ranks.rank()}"
    mine.mkdir(parents=True)
    for name, n in SIZES.items():
        run(n, OUT / name if name == "odd" else None, keep="float32" if name == "odd" else None).write(mine / name)
    run(MANY, None, torch.float32).write(mine / "float32")
    # A rank that finds the folder done or refused must not leave the others waiting.
    run(MANY, OUT / "odd", keep="float32").write(mine / "again")
    said = [refused(lambda: run(MANY, OUT / "odd", seed=1, keep="float32"))]
    # 13 units of the clean images: with two ranks 7 and 6. Both stop in the first attack.
    stop_after(9 if ranks.world() > 1 else 15)
    ranks.barrier()
    said.append(refused(lambda: run(MANY, OUT / "resumed", seed=1, keep="float32")))
    run(MANY, OUT / "resumed", keep="float32").write(mine / "resumed")
    files.write_json(mine / "said.json", said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.group(torch.device("cpu")):
        main()
    print(json.dumps("done"))
