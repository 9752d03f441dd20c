from typing import Any

import pytest
import torch

from toughen.data import Batch, Batches, Split, load
from toughen.data.loading.augment import augment
from toughen.methods import METHODS, Free, Kind, Natural
from toughen.methods.mixup import Mixup
from toughen.noise import Stream
from toughen.recipes import RecipeError
from toughen.recipes.text import build, dump, parse_yaml
from toughen.training.setup import set_up, splits

N, SIZE = 23, 5


def make(split: Split | None = None, **changes) -> Batches:
    if split is None:
        generator = torch.Generator().manual_seed(0)
        split = Split(torch.randint(0, 256, (N, 3, 8, 8), generator=generator).byte(), torch.arange(N) % 7)
    settings = {"batch_size": SIZE, "seed": 0, "device": "cpu", "pad": 2, "flip": True} | changes
    return Batches(split, torch.arange(len(split)) * 10, **settings)


def equal(a: Batch, b: Batch) -> bool:
    tensors = torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)
    return tensors and a.noise.key == b.noise.key and torch.equal(a.noise.rows, b.noise.rows) and a.size == b.size


def test_a_batch_is_what_it_says():
    batches = make(pad=0, flip=False)
    batch = batches[0]
    assert (batch.x.dtype, batch.y.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert batch.x.shape == (SIZE, 3, 8, 8)
    assert len(batch) == batch.size == SIZE
    assert 0 <= batch.x.min() < batch.x.max() <= 1
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 8, 8), generator=generator).byte()
    assert torch.equal(batch.x, images[batch.index // 10].float() / 255)
    assert torch.equal(batch.y, batch.index // 10 % 7)
    assert batch.noise.key == (0, "train", 0)
    assert batch.noise.block == SIZE
    assert batch.noise.rows.tolist() == list(range(SIZE))


def test_an_epoch_holds_every_example_once_and_the_short_batch_is_kept():
    batches = make()
    assert len(batches) == 5
    orders = []
    for epoch in range(3):
        parts = [batches[epoch * 5 + place] for place in range(5)]
        assert [part.size for part in parts] == [5, 5, 5, 5, 3]
        orders.append(torch.cat([part.index for part in parts]).tolist())
        assert sorted(orders[-1]) == [10 * i for i in range(N)]
    assert orders[0] != orders[1] != orders[2]


def test_a_batch_is_a_pure_function_of_seed_and_number():
    visited = make()
    in_order = [visited[number] for number in range(18)]
    assert equal(make()[17], in_order[17])
    assert equal(visited[2], in_order[2])
    assert not equal(make(seed=1)[17], in_order[17])


def test_each_batch_has_crops_and_mirroring_of_its_own():
    pixels = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    batches = make(Split(pixels.repeat(N, 1, 1, 1), torch.zeros(N, dtype=torch.int64)))
    # Of one image throughout, which takes the draws of its place in the batch.
    first, second, next_epoch = batches[0].x, batches[1].x, batches[5].x
    assert not torch.equal(first, second)
    assert not torch.equal(first, next_epoch)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(**changes) -> list[int]:
        batches = make(**changes)
        return torch.cat([batches[number].index for number in range(len(batches), 2 * len(batches))]).tolist()

    assert order() == order(batch_size=4) == order(pad=0, flip=False)
    assert order() != order(seed=1)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("number", [0, 4, 7])
def test_ranks_together_are_one(world, number):
    whole, parts = make()[number], [make(rank=rank, world=world)[number] for rank in range(world)]
    start = whole.noise.uniform((4,))
    for rank, part in enumerate(parts):
        assert torch.equal(part.x, whole.x[rank::world])
        assert torch.equal(part.y, whole.y[rank::world])
        assert torch.equal(part.index, whole.index[rank::world])
        assert torch.equal(part.noise.uniform((4,)), start[rank::world])
        assert part.size == whole.size
    assert sum(map(len, parts)) == whole.size


def test_a_rank_may_be_empty():
    batch = make(rank=3, world=4)[4]
    assert batch.size == 3
    assert batch.x.shape == (0, 3, 8, 8)
    assert batch.noise.uniform((2,)).shape == (0, 2)


def test_the_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    make()[7].noise.uniform((3,))
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_not_changed():
    split = Split(torch.full((6, 1, 4, 4), 9, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    make(split, pad=1)[0].x.zero_()
    make(split, pad=0, flip=False)[0].x.zero_()
    assert bool((split.images == 9).all())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"batch_size": N + 1}, f"1 to {N}"),
        ({"batch_size": 0}, f"1 to {N}"),
        ({"rank": 2, "world": 2}, "0 to 1"),
        ({"rank": -1}, "0 to 0"),
        ({"pad": -1}, "0 or more"),
        ({"pad_mode": "edge"}, "reflect"),
        ({"repeats": 0}, "repeats of 1 or more"),
        ({"repeats": 2}, "multiple"),
        ({"batch_size": 4 * N + 4, "repeats": 4}, f"1 to {4 * N}"),
    ],
)
def test_refusals(changes, part, one_sentence):
    assert part in one_sentence(make, **changes)


def test_wrong_index_negative_number_and_endless_iteration(one_sentence):
    split = Split(torch.zeros(6, 1, 4, 4).byte(), torch.zeros(6).long())
    text = one_sentence(Batches, split, torch.arange(5), batch_size=2, seed=0, device="cpu")
    assert "6 images" in text
    with pytest.raises(IndexError, match="from 0 on"):
        make()[-1]
    with pytest.raises(TypeError, match="not iterable"):
        iter(make())


def test_with_repeats_an_epoch_holds_every_example_once_in_that_many_rows_of_one_batch():
    batches = make(batch_size=12, repeats=3)
    assert len(batches) == 6
    for epoch in range(2):
        parts = [batches[epoch * 6 + place] for place in range(6)]
        assert [part.size for part in parts] == [len(part) for part in parts] == [12, 12, 12, 12, 12, 9]
        examples = []
        for part in parts:
            assert part.noise.block == part.size
            assert torch.equal(part.y, part.index // 10 % 7)
            thirds = part.index.reshape(-1, 3)
            assert (thirds == thirds[:, :1]).all()
            examples += thirds[:, 0].tolist()
        assert sorted(examples) == [10 * i for i in range(N)]
        # The order is that of an epoch without repeats.
        plain = make(batch_size=4)
        assert examples == torch.cat([plain[epoch * 6 + place].index for place in range(6)]).tolist()


def test_each_row_of_a_repeated_example_has_a_crop_and_mirroring_of_its_own():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 8, 8), generator=generator).byte()
    batch = make(batch_size=20, repeats=4)[3]
    # The draws of the batch's 20 rows, as they are without repeats.
    noise = Stream((0, "augment", 3), torch.arange(20), 20)
    expected = augment(images[batch.index // 10], noise, pad=2, flip=True)
    assert torch.equal(batch.x, expected.float() / 255)
    views = {row.numpy().tobytes() for row in batch.x}
    assert len(views) >= 18
    assert len(set(batch.index.tolist())) == 5


def test_one_repeat_is_none():
    for number in (0, 4, 7):
        assert equal(make(repeats=1)[number], make()[number])


def test_a_batch_may_hold_the_whole_set_several_times():
    batches = make(batch_size=2 * N, repeats=2)
    assert len(batches) == 1
    assert sorted(batches[3].index.tolist()) == sorted([10 * i for i in range(N)] * 2)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_out_repeated_examples(world):
    for number in (0, 5):
        whole = make(batch_size=12, repeats=3)[number]
        parts = [make(batch_size=12, repeats=3, rank=rank, world=world)[number] for rank in range(world)]
        for rank, part in enumerate(parts):
            assert torch.equal(part.x, whole.x[rank::world])
            assert torch.equal(part.index, whole.index[rank::world])
            assert torch.equal(part.noise.uniform((4,)), whole.noise.uniform((4,))[rank::world])
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        # With at least as many ranks as repeats no rank has an example twice.
        if world >= 3:
            assert all(len(set(part.index.tolist())) == len(part) for part in parts)


RECIPE = {"model": {"name": "small_cnn", "width": 2}, "method": "natural", "threat": "linf:0.1", "steps": 8}


def recipe(repeats: int, **changes: Any):
    return build({**RECIPE, "data": {"source": "tiny", "repeats": repeats}, "batch_size": 32, **changes})


def test_a_recipe_repeats_and_its_budget_stays(tiny: str):
    found = recipe(4)
    assert build(parse_yaml(dump(found), "a dump")) == found
    assert (found.total_steps, found.batches) == (recipe(1).total_steps, recipe(1).batches) == (8, 8)
    data = load(tiny)
    split, _, index = splits(found, data)
    _, batches = set_up(found, data, split, index, torch.device("cpu"))
    assert len(batches) == -(-len(split) // 8)
    assert (len(batches[0]), len(batches[0].index.unique())) == (32, 8)


class Remembers(Natural, frozen=True):
    """Keeps something for each image."""

    name: str = "remembers"  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def state_kinds(self) -> dict[str, Kind]:
        return {"seen": "index"}


@pytest.mark.usefixtures("tiny")
def test_what_a_recipe_cannot_repeat(monkeypatch: pytest.MonkeyPatch):
    for kind in (Remembers, Mixup):
        monkeypatch.setitem(METHODS, kind.model_fields["name"].default, kind)

    def fault(repeats: int, **changes: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            recipe(repeats, **changes)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "data.repeats" in fault(0)
    assert "a multiple" in fault(5)
    for method in ("remembers", {"name": "mixup", "method": "remembers"}):
        assert recipe(1, method=method)
        assert "use data.repeats: 1" in fault(2, method=method)
    assert recipe(2, method={"name": "free", "replays": 2}).method == Free(replays=2)
