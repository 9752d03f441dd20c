"""Random draws: pure functions of a key and a row, and nothing else."""

import itertools

import pytest
import torch
from torch import Tensor

from conftest import Faults
from toughen.noise import Stream, derive, fixed, generator

SHAPE = (3, 32, 32)
DRAWS = {
    "uniform": lambda stream: stream.uniform(SHAPE),
    "normal": lambda stream: stream.normal(SHAPE),
    "integers": lambda stream: stream.integers(1000, SHAPE),
}


@pytest.fixture(params=[None, 16], ids=["rows", "block"])
def stream(request) -> Stream:
    return Stream(("seed", 0, "test"), torch.arange(16), block=request.param)


@pytest.fixture(params=list(DRAWS))
def draw(request):
    return DRAWS[request.param]


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1].item()


def test_one_key_and_row_give_one_draw(stream, draw):
    first = draw(stream)
    assert torch.equal(draw(Stream(("seed", 0, "test"), torch.arange(16), stream.block)), first)
    assert torch.equal(draw(stream), first)
    assert first.shape == (16, *SHAPE)


def test_the_global_generator_is_left_alone(stream, draw):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(stream)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(stream), first)


def test_other_purposes_steps_and_seeds_are_unrelated(stream, draw):
    keys = [
        ("seed", 0, "test"),
        ("seed", 1, "test"),
        ("seed", 0, "tests"),
        ("seed", 0, "test", 0),
        ("seed", "0", "test"),
    ]
    draws = [draw(Stream(key, stream.rows, stream.block))[0] for key in keys]
    for a, b in itertools.combinations(draws, 2):
        assert abs(correlation(a, b)) < 0.1


def test_other_rows_are_unrelated(stream, draw):
    for a, b in itertools.combinations(draw(stream)[:6], 2):
        assert abs(correlation(a, b)) < 0.1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_rank_takes_its_rows_of_the_global_batch(stream, draw, world):
    whole = draw(stream)
    for rank in range(world):
        assert torch.equal(draw(stream[rank::world]), whole[rank::world])
        assert torch.equal(draw(stream[rank::world][1:]), whole[rank::world][1:])


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_whoever_takes_rows_in_whatever_order_has_those_of_the_block(kind):
    """Ranks, their micro-batches, and rows in no order at all: the very numbers that a generator of the key makes."""
    sample, shape = {"uniform": torch.rand, "normal": torch.randn}[kind], (3, 2)
    block = sample((11, *shape), generator=generator("key", 4), dtype=torch.float64)
    block = block * 2 - 1 if kind == "uniform" else block
    stream = Stream(("key", 4), torch.arange(11), block=11)
    parts = [(world, rank, first) for world in (1, 2, 3) for rank in range(world) for first in range(0, 4, 2)]
    for world, rank, first in parts:
        rows = stream.rows[rank::world][first : first + 2]
        mine = stream[rank::world][first : first + 2]
        assert torch.equal(getattr(mine, kind)(shape, dtype=torch.float64), block[rows])
    for rows in (torch.tensor([7, 0, 7, 10, 3]), torch.tensor([9]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(getattr(stream[rows], kind)(shape, dtype=torch.float64), block[rows])


def test_a_stream_is_indexed_by_slices_masks_and_numbers(stream, draw):
    whole, order = draw(stream), torch.tensor([7, 3, 3, 15])
    mask = torch.arange(16) % 3 == 0
    assert torch.equal(draw(stream[order]), whole[order])
    assert torch.equal(draw(stream[mask]), whole[mask])
    assert len(stream[mask]) == 6
    assert draw(stream[:0]).shape == (0, *SHAPE)


def test_a_row_does_not_depend_on_its_company():
    def rows(*numbers: int) -> Tensor:
        return Stream(("a",), torch.tensor(numbers)).uniform((4,))

    assert torch.equal(rows(5), rows(9, 5, 10**9)[1:2])
    assert torch.equal(rows(1, 2, 3).flip(0), rows(3, 2, 1))
    assert torch.equal(rows(4, 4)[0], rows(4, 4)[1])


def test_a_block_depends_on_its_key_alone():
    whole = Stream(("a", 3), torch.arange(8), block=8).normal((5,))
    assert torch.equal(whole, torch.randn(8, 5, generator=generator("a", 3)))
    assert not torch.equal(whole, Stream(("a", 4), torch.arange(8), block=8).normal((5,)))


def test_a_child_is_the_stream_of_the_longer_key(stream, draw):
    child = stream.child("pgd", 2)
    assert child.key == ("seed", 0, "test", "pgd", 2)
    assert child.block == stream.block
    assert torch.equal(child.rows, stream.rows)
    assert torch.equal(draw(child), draw(Stream(child.key, stream.rows, stream.block)))
    assert not torch.equal(draw(child), draw(stream))
    assert torch.equal(draw(stream[3:].child("pgd", 2)), draw(child[3:]))
    assert torch.equal(draw(stream.child("pgd").child(2)), draw(child))


def test_uniform_draws(stream):
    numbers = stream.uniform(SHAPE, dtype=torch.float64)
    assert numbers.dtype == torch.float64
    assert numbers.min() >= -1
    assert numbers.max() < 1
    assert numbers.mean().abs() < 0.01
    assert numbers.abs().mean().item() == pytest.approx(0.5, abs=0.01)
    assert (numbers < -0.99).any()
    assert (numbers > 0.99).any()


def test_normal_draws(stream):
    numbers = stream.normal(SHAPE, dtype=torch.float64)
    assert numbers.dtype == torch.float64
    assert numbers.mean().abs() < 0.02
    assert numbers.std().item() == pytest.approx(1, abs=0.02)
    assert (numbers.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)


def test_integer_draws(stream):
    numbers = stream.integers(5, SHAPE)
    assert numbers.dtype == torch.int64
    shares = torch.bincount(numbers.flatten(), minlength=5) / numbers.numel()
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.01)
    assert stream.integers(7).shape == (16,)
    assert torch.equal(stream.integers(1, SHAPE), torch.zeros(16, *SHAPE, dtype=torch.int64))


def test_the_default_type_is_float32(stream):
    assert stream.uniform((2,)).dtype == stream.normal((2,)).dtype == torch.float32


@pytest.mark.faults
def test_keys_of_whole_runs_do_not_collide(faults: Faults):
    """Of every seed, purpose, step, restart and example: 64 bits, so that chance makes 3e-8 of a million."""
    examples = faults.trials(small=10, full=2000)
    parts = itertools.product(range(2), ("attack", "augment", "start", "square", "model"), range(10), range(5))
    keys = [derive(*part, example) for part in parts for example in range(examples)]
    assert len(set(keys)) == len(keys) == 500 * examples
    faults.tell("7 ranks", f"{len(keys)} keys of (seed, purpose, step, restart, example): all different")


def test_no_two_keys_collide():
    parts = ["", "1", "12", "a", "ab", "bc", "abc", "b", "c", "int:1", 0, 1, 2, 12, 21, -1, 10**20]
    keys = [key for length in range(4) for key in itertools.product(parts, repeat=length)]
    seeds = {derive(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "2"), ("1", 2)),
        (("a", "bc"), ("ab", "c")),
        # Without lengths the texts of the two would be one.
        (("a", "b"), ("astr:b",)),
        ((1, 23), (12, 3)),
        (("a",), ("a", "")),
        ((), ("",)),
    ],
)
def test_tricky_keys(one, other):
    assert derive(*one) != derive(*other)


def test_seeds_are_the_same_on_every_machine():
    """Changing this changes every run that was ever recorded."""
    assert derive("seed", 0, "augment", 17) == 8655242828459493089


def test_the_fixed_stream_is_keyed_by_position():
    assert torch.equal(fixed(4).uniform((3,)), fixed(9)[:4].uniform((3,)))
    assert torch.equal(fixed(4).uniform((3,)), Stream(("fixed",), torch.arange(4)).uniform((3,)))
    assert len(fixed(4)) == 4
    assert len(fixed(0)) == 0
