"""One of several ranks that train in float64: `python ranks.py FOLDER ROWS CASE...`, with torchrun's variables set.

A rank's batch goes through the model ROWS images at a time, or whole where ROWS is 0.

For each form of each method the first rank saves weights, averages and the gathered method state.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from conftest import tiny_data
from method_cases import CASES, Case
from toughen.data import DATA, load
from toughen.parallel import ranks
from toughen.recipes.text import build
from toughen.training.loop import train_batch
from toughen.training.setup import set_up, splits
from toughen.training.state import capture


def train(out: Path, case: Case, rows: int) -> None:
    # 134 training images in batches of 19: the last has a single one, so the second of two ranks has none.
    recipe = build(
        {
            "data": {"source": "tiny", "validation": 16, "pad": 1, "flip": True},
            "model": {"name": "small_cnn", "width": 2},
            "method": case.settings,
            "threat": "linf:0.1",
            "batch_size": 19,
            "micro_batch": rows or None,
            "steps": 60,
            "averages": [0.9],
            **case.recipe,
        }
    )
    data = load("tiny")
    split, _, index = splits(recipe, data)
    assert len(split) % recipe.batch_size == 1
    job, batches = set_up(recipe, data, split, index, torch.device("cpu"), dtype=torch.float64)
    for i in range(len(batches) + 2):
        batch = batches[i]
        train_batch(job, replace(batch, x=batch.x.double()))
    job.finite.check()
    record = job.meters.read()
    tensors, _ = capture(job, slots=recipe.batch_size)
    if ranks.is_main():
        flat = {f"{group}.{name}": t for group, members in tensors.items() for name, t in members.items()}
        flat["meters"] = torch.tensor(list(record.values()), dtype=torch.float64)
        save_file({name: t.contiguous() for name, t in flat.items()}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    DATA["tiny"] = tiny_data
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    with ranks.group(torch.device("cpu")):
        for name in sys.argv[3:]:
            train(folder / f"{name}.safetensors", CASES[name], rows)
