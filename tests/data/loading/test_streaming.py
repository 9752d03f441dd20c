import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from photographs import Files, photograph, stored_photographs, write_photographs
from toughen.data import Batches, Split
from toughen.data.base import Examples, ImageData, fingerprint, held_out, subset
from toughen.data.crops import ResizeCrop
from toughen.data.image_source import ArrayImages
from toughen.data.lazy_split import LazySplit
from toughen.noise import derive

N = 23


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> LazySplit:
    return stored_photographs(tmp_path_factory.mktemp("photographs"), N)


def make(split: Examples, **changes) -> Batches:
    settings = {"batch_size": 5, "seed": 0, "device": "cpu", "flip": True, "workers": 0} | changes
    return Batches(split, torch.arange(N) * 10, **settings)


def same(a, b) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index) and a.size == b.size


def test_a_batch_is_the_random_views_of_its_examples(stored):
    batches = make(stored, flip=False)
    for number in (0, 4, 7):
        batch, epoch = batches[number], number // 5
        for x, y, index in zip(batch.x, batch.y, batch.index, strict=True):
            row = int(index) // 10
            draw = np.random.default_rng(derive(0, "view", epoch, row, 0))
            with Image.open(stored.encoded.paths[row]) as image:
                expected = ResizeCrop(16).random(image, draw)
            assert torch.equal(x, torch.tensor(expected.transpose(2, 0, 1)).float() / 255)
            assert y == row % 7


def test_an_epoch_holds_every_example_once_and_the_last_batch_is_short(stored):
    batches = make(stored)
    for epoch in range(2):
        parts = [batches[epoch * 5 + place] for place in range(5)]
        assert [len(part) for part in parts] == [5, 5, 5, 5, 3]
        assert sorted(torch.cat([part.index for part in parts]).tolist()) == [10 * i for i in range(N)]


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_no_pixel(stored, workers):
    plain, streamed = make(stored), make(stored, workers=workers)
    assert all(same(plain[number], streamed[number]) for number in range(12))


def test_resumed_at_any_batch_and_in_any_order(stored):
    whole = [make(stored)[number] for number in range(12)]
    later = make(stored, workers=1)
    for number in (8, 9, 10, 3, 11, 4, 5):
        assert same(later[number], whole[number])


def test_ranks_together_are_one(stored):
    whole = make(stored)
    parts = [make(stored, rank=rank, world=2) for rank in range(2)]
    for number in range(10):
        for rank in range(2):
            part, all_rows = parts[rank][number], whole[number]
            assert torch.equal(part.x, all_rows.x[rank::2])
            assert torch.equal(part.index, all_rows.index[rank::2])
    empty = make(stored, batch_size=22, rank=1, world=2)[1]
    assert empty.x.shape == (0, 3, 16, 16)


def test_each_repeat_has_a_view_of_its_own(stored):
    batch = make(stored, batch_size=6, repeats=3, flip=False)[0]
    assert len(set(batch.index.tolist())) == 2
    assert len({row.numpy().tobytes() for row in batch.x}) == 6


def test_an_example_is_seen_anew_in_every_epoch(stored):
    batches = make(stored, batch_size=N, flip=False)
    first, second = batches[0], batches[1]
    place = {int(index): row for row, index in enumerate(second.index)}
    assert not any(torch.equal(x, second.x[place[int(i)]]) for x, i in zip(first.x, first.index, strict=True))


def test_without_a_view_streamed_and_resident_are_equal():
    pixels = np.random.default_rng(0).integers(0, 256, (N, 8, 9, 3)).astype(np.uint8)
    labels = torch.arange(N) % 7
    stored = LazySplit(ArrayImages(pixels), labels, "arrays")
    split = Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)
    assert stored.shape == split.shape == (3, 8, 9)
    assert torch.equal(stored.images, split.images)
    for number in range(7):
        assert same(make(stored, pad=2)[number], make(split, pad=2)[number])


def test_a_part_keeps_its_images(stored):
    chosen = torch.tensor([5, 2, 20])
    part = stored.take(chosen)
    assert torch.equal(part.images, stored.images[chosen])
    assert torch.equal(part.take(torch.tensor([False, True, True])).images, stored.images[chosen[1:]])
    assert part.name(0) == stored.name(5)
    assert len(stored.take(torch.tensor([], dtype=torch.int64))) == 0
    assert torch.equal(pickle.loads(pickle.dumps(part)).images, part.images)


def test_an_empty_part_is_empty(stored):
    nothing = stored.take(torch.zeros(N, dtype=torch.bool))
    assert len(nothing) == len(nothing.rows) == 0
    assert nothing.images.shape == (0, 3, 16, 16)


def test_validation_and_subsets_of_stored_images(stored):
    data = ImageData("photographs", stored, None, stored, tuple("abcdefg"))
    train, validation, index = held_out(data, seed=0, size=5)
    assert isinstance(train, LazySplit)
    assert isinstance(validation, LazySplit)
    assert sorted([*train.rows.tolist(), *validation.rows.tolist()]) == list(range(N))
    assert torch.equal(train.rows, index)
    few, chosen = subset(train, 7, seed=0)
    assert isinstance(few, LazySplit)
    assert torch.equal(few.rows, index[chosen])
    assert sorted(few.labels.tolist()) == list(range(7))


def test_the_fingerprint_tells_views_sources_parts_and_labels_apart(stored):
    variants = [
        stored,
        LazySplit(stored.encoded, stored.labels, stored.key, ResizeCrop(17)),
        LazySplit(stored.encoded, stored.labels, stored.key, ResizeCrop(16, area=0.5)),
        LazySplit(stored.encoded, stored.labels, "others", stored.view),
        LazySplit(stored.encoded, stored.labels.flip(0), stored.key, stored.view),
        stored.take(torch.arange(N - 1)),
        stored.take(torch.arange(N).flip(0)),
    ]
    assert len({fingerprint({"train": variant}) for variant in variants}) == len(variants)
    again = LazySplit(stored.encoded, stored.labels.clone(), stored.key, ResizeCrop(16))
    assert fingerprint({"train": again}) == fingerprint({"train": stored})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(tmp_path, workers, one_sentence):
    files = write_photographs(tmp_path, N)
    files.paths[9].write_bytes(files.paths[9].read_bytes()[:300])
    batches = make(LazySplit(files, torch.arange(N) % 7, "broken", ResizeCrop(16)), workers=workers)

    def epoch() -> None:
        for number in range(5):
            batches[number]

    assert "009.jpg is a broken image" in one_sentence(epoch)


def test_mixed_sizes_and_modes_are_named(tmp_path, one_sentence):
    photograph(0, 8, 8).save(tmp_path / "a.png")
    photograph(1, 9, 8).save(tmp_path / "b.png")
    photograph(2, 8, 8).convert("RGBA").save(tmp_path / "c.png")
    files = Files(tuple(tmp_path / f"{name}.png" for name in "abc"))
    split = LazySplit(files, torch.zeros(3).long(), "mixed")
    text = one_sentence(lambda: split.take(torch.tensor([0, 1])).images)
    assert "b.png is RGB of 9x8" in text
    assert "view=ResizeCrop(224)" in text
    assert "c.png is RGBA of 8x8" in one_sentence(lambda: split.take(torch.tensor([0, 2])).images)
    assert "c.png is of mode RGBA" in one_sentence(lambda: split.take(torch.tensor([2])).images)


def test_the_global_random_state_is_left_alone(stored):
    state = torch.get_rng_state()
    batches = make(stored, workers=1)
    for number in (0, 3):
        batches[number]
    assert torch.equal(torch.get_rng_state(), state)
