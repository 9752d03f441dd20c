"""What a study will cost before it starts: passes from the plan, hours from a short probe on this device.

for line in cost_lines(folder): print(line)
"""

import time
from collections.abc import Iterator

import torch

from toughen.devices import own_draws, wait
from toughen.losses import cross_entropy
from toughen.progress import duration
from toughen.recipes import Recipe
from toughen.recipes.text import build, parse_yaml
from toughen.studies.folder import TRAIN, StudyFolder, StudyTask
from toughen.training.chosen_device import chosen_device
from toughen.training.setup import build_model, load_data

PROBE_STEPS, PROBE_SECONDS = 20, 5.0
"""A probe ends after so many steps, or so many seconds, whichever is earlier."""


def cost_lines(folder: StudyFolder, *, probe: bool = True) -> Iterator[str]:
    """What there is to do, what is done, and what is left: in natural steps, and in hours on this device.

    Args:
        folder: of the study.
        probe: time some natural steps of each network that is still to be trained.
    """
    trainings = folder.asked["trainings"]
    left = [name for name in trainings if not folder.done(StudyTask(TRAIN, name))]
    rows = sum(bool(row["trainings"]) for row in folder.rows.values())
    total = sum(training["natural_steps"] for training in trainings.values())
    yield f"{folder.asked['title']}: {rows} rows, {len(trainings)} trainings, {total:,.0f} natural steps"
    for name, row in folder.rows.items():
        if row["error"]:
            yield f"left out: {name}: {row['error']}"
    if len(left) < len(trainings):
        yield f"done already: {len(trainings) - len(left)} trainings"
    if not left or not probe:
        return
    steps = sum(trainings[name]["natural_steps"] for name in left)
    timed: dict[str, float] = {}
    seconds = sum(trainings[name]["natural_steps"] * _step_seconds(trainings[name]["recipe"], timed) for name in left)
    yield f"to train: {len(left)}, {steps:,.0f} natural steps, about {duration(seconds)} on this device one at a time"
    yield "validation, checks and the evaluations of the test split are not counted"


def waiting(folder: StudyFolder) -> Iterator[tuple[str, Recipe]]:
    """What is still to be trained, by name."""
    for name, training in folder.asked["trainings"].items():
        if not folder.done(StudyTask(TRAIN, name)):
            yield name, build(parse_yaml(training["recipe"], "study.json"))


def _step_seconds(text: str, known: dict[str, float]) -> float:
    """Of a training, probed once for all that have its network, batch and images."""
    recipe = build(parse_yaml(text, "study.json"))
    key = f"{recipe.model.model_dump_json()} {recipe.batch_size} {recipe.data.source} {recipe.data.view}"
    if key not in known:
        known[key] = time_natural_step(recipe)
    return known[key]


def time_natural_step(recipe: Recipe) -> float:
    """Seconds of a natural step on images of the recipe's shape; the first step is left out."""
    device = chosen_device(recipe.device)
    data = load_data(recipe)
    with own_draws(device):
        model = build_model(recipe, data).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.rand((recipe.batch_size, *data.image_shape), generator=torch.Generator().manual_seed(0)).to(device)
    y = torch.zeros(recipe.batch_size, dtype=torch.int64, device=device)
    started, first, steps = time.perf_counter(), 0.0, 0
    while steps < PROBE_STEPS and time.perf_counter() - started < PROBE_SECONDS:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
        wait(device)
        steps += 1
        first = first or time.perf_counter() - started
    elapsed = time.perf_counter() - started
    return (elapsed - first) / (steps - 1) if steps > 1 else elapsed
