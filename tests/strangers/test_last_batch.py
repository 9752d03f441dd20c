"""A last batch, or a part of a batch, with too few images for BatchNorm: known before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from toughen.cli.app import app
from toughen.data import Batches, LazySplit, load
from toughen.data.image_source import ArrayImages
from toughen.data.loading.batches import Extra
from toughen.models.registry import MODELS
from toughen.parallel import ranks
from toughen.progress import Display
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build, dump
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import run as run_module
from toughen.training import train
from toughen.training.loop import Job, train_batch
from toughen.training.micro_batch_search import rows_that_fit
from toughen.training.micro_batches import cuts, fewest, images_needed, leave_out_short
from toughen.training.setup import set_up, splits

CPU = torch.device("cpu")


class Net(nn.Module):
    """A convolution, a normalisation and a linear layer."""

    def __init__(self, norm: Callable[[], nn.Module], side: int) -> None:
        super().__init__()
        self.conv, self.pool, self.norm = nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(side), norm()
        self.head = nn.Linear(6 * side * side, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.conv(x))
        return self.head(self.norm(h if isinstance(self.norm, MAPS) else h.flatten(1)).flatten(1))


class Squeezing(nn.Module):
    """Takes away every axis of one entry, the batch's too where it is one image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(x), 1).squeeze())


MAPS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)

NETS: dict[str, Callable[..., nn.Module]] = {
    "vector": lambda **_: Net(lambda: nn.BatchNorm1d(6), 1),
    "one number": lambda **_: Net(lambda: nn.BatchNorm2d(6), 1),
    "map of 2x2": lambda **_: Net(lambda: nn.BatchNorm2d(6), 2),
    "groups": lambda **_: Net(lambda: nn.GroupNorm(2, 6), 1),
    "lazy": lambda **_: Net(nn.LazyBatchNorm1d, 1),
    "no norm": lambda **_: Net(nn.Identity, 1),
    "squeezing": lambda **_: Squeezing(),
    "instances": lambda **_: Net(lambda: nn.InstanceNorm2d(6, track_running_stats=True), 1),
}

# 129 images: four batches of 32, and one image.
RECIPE: dict[str, Any] = {
    "data": {"source": "tiny", "validation": 21, "flip": True, "pad": 1},
    "model": "vector",
    "method": "natural",
    "threat": "linf:0.1",
    "batch_size": 32,
    "steps": 10,
    "optimizer": {"lr": 0.05},
    "selection": {"suite": "pgd-1", "every": 10},
    "save_every": 3,
    "overfitting_every": 4,
}


@pytest.fixture(autouse=True)
def _nets(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny == "tiny"
    for name, make in NETS.items():
        monkeypatch.setitem(MODELS, name, make)


class Listening(Display):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def made(recipe: Recipe, *, extra: float | None = None) -> tuple[Job, Batches, list[str]]:
    """Job, batches and notes."""
    listening, data = Listening(), load("tiny")
    split, _, index = splits(recipe, data)
    more = None if extra is None else Extra(data.train, len(data.train), extra)
    return *set_up(recipe, data, split, index, CPU, extra=more, note=listening.note), listening.told


def weights(folder: Path) -> dict[str, Tensor]:
    newest = latest_checkpoint(folder, warn=print)
    assert newest is not None
    return dict(newest.tensors("weights"))


METHODS: dict[str, dict[str, Any]] = {
    "natural": {},
    "attack in training mode": {"method": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2,
                                           "attack_bn": "train"}}},
    "attack on the batch's statistics": {"method": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2,
                                                    "attack_bn": "batch"}}},
    "free": {"method": {"name": "free", "replays": 2}},
    "trades": {"method": {"name": "trades", "attack": {"name": "pgd", "steps": 1}}},
    "bilateral": {"method": {"name": "bilateral", "attack_bn": "train"}},
    "mixup": {"method": {"name": "mixup", "method": "natural"}},
    "instance_adaptive": {"method": {"name": "instance_adaptive", "attack": {"name": "pgd", "steps": 1}, "warmup": 1}},
    "weights perturbed": {"weight_perturbation": {}},
    "activations recomputed": {"model": {"name": "resnet18", "width": 4}, "activation_checkpointing": True,
                               "steps": 5},
    "squeezed": {"model": "squeezing"},
    "parts": {"micro_batch": 31},
    "small parts": {"micro_batch": 3},
}  # fmt: skip


@pytest.mark.parametrize("case", METHODS)
def test_a_whole_epoch_is_trained_and_the_lone_image_left_out(case: str):
    job, batches, told = made(build({**RECIPE, **METHODS[case]}))
    (note,) = [text for text in told if "last batch" in text]
    assert note.startswith("the last batch of every epoch, with 1 of the images, is left out, for the network")
    assert len(batches) == 4
    seen: set[int] = set()
    for number in range(5):
        train_batch(job, batches[number])
        seen |= set(batches[number].index.tolist())
    job.finite.check()
    # Another image is left out of another epoch.
    seen |= {index for number in range(5, 40) for index in batches[number].index.tolist()}
    assert len(seen) == 129
    assert all(batches[number].size == 32 for number in range(12))


@pytest.mark.parametrize("model", ["map of 2x2", "groups", "no norm"])
def test_who_can_be_trained_on_one_image_still_is(model: str):
    job, batches, told = made(build({**RECIPE, "model": model}))
    assert not [text for text in told if "last batch" in text]
    assert (len(batches), batches[4].size, job.least) == (5, 1, 0)
    for number in range(5):
        train_batch(job, batches[number])
    job.finite.check()


@pytest.mark.parametrize("model", ["vector", "one number", "lazy"])
def test_it_is_the_training_without_that_batch_and_a_killed_run_ends_with_its_bits(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = build({**RECIPE, "model": model})
    train(recipe, tmp_path / "whole")
    # By hand: ten batches of 32 in the same orders, of which each epoch has four.
    job, batches, _ = made(recipe)
    for number in range(10):
        train_batch(job, batches[number])
    by_hand = job.model.state_dict()
    assert all(torch.equal(value, by_hand[name]) for name, value in weights(tmp_path / "whole").items())
    begun = []

    def dying(job: Job, batch: Any) -> None:
        begun.append(batch)
        if len(begun) == 9:
            raise KeyboardInterrupt
        train_batch(job, batch)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "killed")
    train(recipe, tmp_path / "killed")
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


def test_looking_changes_nothing():
    """The pass by which it is found out leaves statistics, modes and the random state as they were."""
    net, other = nn.Sequential(NETS["vector"](), nn.Dropout()), NETS["map of 2x2"]()
    net[1].eval()
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    assert images_needed(build(RECIPE), net, (1, 8, 8), CPU) == 2
    assert images_needed(build(RECIPE), other, (1, 8, 8), CPU) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [module.training for module in (net, net[0], net[1])] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_decoded_ahead_is_of_the_batches_that_are_left():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1)).astype(np.uint8)
    split = LazySplit(ArrayImages(images), torch.arange(9) % 3, "arrays")
    given = {"batch_size": 4, "seed": 0, "device": "cpu"}
    plain, ahead = (Batches(split, torch.arange(9), workers=workers, **given) for workers in (0, 2))
    plain.leave_out_short()
    # As the search for what fits into a GPU's memory does before it is known what is left out.
    assert [ahead[number].size for number in (0, 1)] == [4, 4]
    ahead.leave_out_short()
    for number in range(5):
        assert torch.equal(ahead[number].x, plain[number].x)
        assert ahead[number].size == 4
    ahead.close()


@pytest.mark.parametrize("extra", [0.5, 0.3])
def test_with_an_extra_set_no_batch_is_short(extra: float):
    job, batches, told = made(build(RECIPE), extra=extra)
    assert not [text for text in told if "last batch" in text]
    assert {batches[number].size for number in range(20)} == {32}
    train_batch(job, batches[0])


@pytest.mark.parametrize(
    ("size", "rows", "least", "world", "parts"),
    [
        # As ever where nothing is too small.
        (19, 8, 0, 1, [8, 8, 3]),
        (19, 8, 2, 1, [8, 8, 3]),
        (17, 8, 0, 1, [8, 8, 1]),
        (32, None, 2, 1, [32]),
        (6, 8, 2, 1, [6]),
        # Evenly where the last part would be too small; none is larger than asked for.
        (17, 8, 2, 1, [6, 6, 5]),
        (32, 31, 2, 1, [16, 16]),
        (5, 4, 2, 1, [3, 2]),
        (7, 3, 2, 1, [3, 2, 2]),
        # On the first of two ranks 9 rows and on the other 8.
        (17, 4, 2, 2, [3, 3, 3]),
        (17, 4, 1, 2, [3, 3, 3]),
        (17, 4, 0, 2, [4, 4, 1]),
        (58, 4, 2, 2, [4, 4, 3, 4, 4, 3, 4, 3]),
        # In vain.
        (3, 2, 2, 1, [2, 1]),
        (4, 1, 2, 1, [1, 1, 1, 1]),
    ],
)
def test_how_a_batch_is_cut(
    size: int, rows: int | None, least: int, world: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ranks, "world", lambda: world)
    found = cuts(size, rows, least)
    assert [part.stop - part.start for part in found] == parts
    assert [part.start for part in found] == [0, *(part.stop for part in found[:-1])]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_part_is_too_small_or_larger_than_asked_for_wherever_it_can_be_so(
    world: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ranks, "world", lambda: world)
    for least in (0, 1, 2):
        for rows in range(1, 9):
            for size in range(world * least, 60):
                parts = cuts(size, rows, least)
                assert max(part.stop - part.start for part in parts) <= rows
                assert len(parts) == len(cuts(size, rows))
                if rows > least + 1:
                    assert fewest(size, rows, least) >= least or size // world < least
                plain = min(min(part.stop, size // world) - part.start for part in cuts(size, rows))
                if plain >= least:
                    assert parts == cuts(size, rows)


@pytest.mark.parametrize(
    ("changes", "world", "said"),
    [
        (
            {"batch_size": 1},
            1,
            "batch_size: 1 is too few images, for the network in training mode needs two at least; give 2 or more",
        ),
        (
            {"batch_size": 3},
            2,
            "for the network in training mode needs two at least on each of the 2 ranks; give 4 or more",
        ),
        (
            {"micro_batch": 1},
            1,
            "micro_batch: parts of 1 leave too few images in one of a batch of 32, for the network",
        ),
        ({"batch_size": 33, "micro_batch": 2}, 1, "parts of 2 leave too few images in one of a batch of 33"),
        ({"model": "instances"}, 1, "model: instances does not take 1x8x8 images in training mode (Expected more"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(
    changes: dict[str, Any], world: int, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ranks, "world", lambda: world)
    with pytest.raises(RecipeError) as caught:
        made(build({**RECIPE, **changes}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_at_the_command_line_it_is_one_sentence_and_nothing_is_begun(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(dump(build({**RECIPE, "batch_size": 1})))
    result = CliRunner().invoke(app, ["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "batch_size: 1 is too few images" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "changes", "smallest", "least", "left_out"),
    [
        ("vector", {}, 1, 2, True),
        ("vector", {}, 2, 2, True),
        ("vector", {}, 3, 2, True),
        ("vector", {}, 4, 2, False),
        ("map of 2x2", {}, 1, 0, True),
        ("map of 2x2", {}, 2, 0, False),
        ("groups", {}, 1, 0, False),
        # Where ranks wait for one another each must have one.
        ("groups", {"sharding": "full"}, 1, 1, True),
        ("groups", {"sharding": "full"}, 2, 1, False),
        ("groups", {"sharding": "full", "micro_batch": 1}, 3, 1, True),
    ],
)
def test_on_two_ranks(
    model: str,
    changes: dict[str, Any],
    smallest: int,
    least: int,
    left_out: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    class Short:
        called = False

        def leave_out_short(self) -> None:
            self.called = True

    monkeypatch.setattr(ranks, "world", lambda: 2)
    batches: Any = Short()
    batches.smallest, told = smallest, list[str]()
    recipe = build({**RECIPE, "model": model, **changes})
    leave_out_short(recipe, NETS[model](), batches, recipe.micro_batch, least, told.append)  # pyright: ignore[reportArgumentType]
    assert batches.called == left_out
    assert len(told) == left_out


def test_what_fits_leaves_no_image_alone():
    """The search for what fits into a GPU's memory halves 33 to 17, 9, 5 and 3 rows, and stops there."""
    job, batches, _ = made(build({**RECIPE, "batch_size": 33}))

    class Limited(nn.Module):
        def __init__(self, net: nn.Module, most: int) -> None:
            super().__init__()
            self.net, self.most = net, most

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("out of memory")
            return self.net(x)

    net = job.model
    for most, found in ((32, 17), (8, 5), (3, 3)):
        job.model = job.wrapped = Limited(net, most)
        assert rows_that_fit(job, batches[0]) == found
    for most in (1, 2):
        job.model = job.wrapped = Limited(net, most)
        with pytest.raises(RecipeError, match="not even two images fit"):
            rows_that_fit(job, batches[0])
