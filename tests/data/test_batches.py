import pytest
import torch

from toughen.data import Batch, Batches, Split

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
    # The same example in another epoch is augmented anew.
    assert not torch.equal(in_order[0].x.sort().values, in_order[5].x.sort().values)


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
