from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from toughen.data import ImageData, Split, held_out, subset
from toughen.data.base import first, per_class


def make_split(n: int, classes: int = 4, shape: tuple[int, int, int] = (1, 2, 2)) -> Split:
    return Split(
        torch.arange(n * shape[0] * shape[1] * shape[2]).view(n, *shape).to(torch.uint8), torch.arange(n) % classes
    )


def make_data(n: int, validation: Split | None = None, classes: int = 4) -> ImageData:
    return ImageData("made", make_split(n), validation, make_split(5), tuple("abcdefgh"[:classes]))


def test_split():
    split = make_split(6)
    assert len(split) == 6
    taken = split.take(torch.tensor([4, 0]))
    assert taken.labels.tolist() == [0, 0]
    assert torch.equal(taken.images, split.images[[4, 0]])
    x = split.float_images()
    assert x.dtype == torch.float32
    assert torch.equal((x * 255).round().to(torch.uint8), split.images)
    assert Split(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0])).float_images().item() == 1.0


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2).long(), "float32"),
        (torch.zeros(2, 2, 2).byte(), torch.zeros(2).long(), "(N, C, H, W)"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.zeros(2), "class indices"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.zeros(3).long(), "2 images"),
    ],
)
def test_split_refuses(images, labels, part, one_sentence):
    assert part in one_sentence(Split, images, labels)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_outside_the_classes(label, one_sentence):
    test = make_split(5)
    test.labels[3] = label
    text = one_sentence(ImageData, "made", make_split(8), None, test, tuple("abcd"))
    assert "Example 3 of the test split" in text
    assert f"label {label}" in text
    assert "0 to 3" in text


def test_splits_of_different_shape_or_empty(one_sentence):
    text = one_sentence(ImageData, "made", make_split(8), make_split(4, shape=(3, 2, 2)), make_split(4), tuple("abcd"))
    assert "validation images" in text
    assert "(3, 2, 2)" in text
    assert "test split" in one_sentence(ImageData, "made", make_split(8), None, make_split(0), tuple("abcd"))


def test_fingerprint_sees_everything():
    def fingerprint(train=make_split(8), validation=None, test=make_split(5)):  # noqa: B008
        return ImageData("made", train, validation, test, tuple("abcd")).fingerprint

    pixel, label = make_split(8), make_split(8)
    pixel.images[3, 0, 1, 1] += 1
    label.labels[3] = 0
    others = [
        fingerprint(train=pixel),
        fingerprint(train=label),
        fingerprint(validation=make_split(5)),
        fingerprint(test=make_split(6)),
        fingerprint(
            train=Split(make_split(8).images.view(8, 1, 1, 4), make_split(8).labels), test=make_split(5, 4, (1, 1, 4))
        ),
    ]
    assert len({fingerprint(), *others}) == 6
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 64


@pytest.mark.parametrize(("n", "size"), [(40, 4), (10_239, 1023), (10_240, 1024), (12_000, 1024)])
def test_held_out_size(n, size):
    train, validation, index = held_out(make_data(n), seed=0)
    assert (len(train), len(validation), len(index)) == (n - size, size, n - size)


def test_held_out_is_a_pure_function_and_disjoint():
    data = make_data(60)
    train, validation, index = held_out(data, seed=3, size=20)
    again = held_out(make_data(60), seed=3, size=20)
    assert torch.equal(index, again[2])
    assert torch.equal(validation.images, again[1].images)
    assert not torch.equal(index, held_out(data, seed=4, size=20)[2])
    assert torch.equal(index, index.sort().values)
    assert torch.equal(train.images, data.train.images[index])
    assert torch.equal(train.labels, data.train.labels[index])
    rest = torch.tensor(sorted(set(range(60)) - set(index.tolist())))
    assert torch.equal(validation.images, data.train.images[rest])
    assert set(held_out(data, seed=3, size=30)[2].tolist()) < set(index.tolist())


def test_a_shipped_validation_split_is_used():
    data = make_data(60, validation=make_split(7))
    train, validation, index = held_out(data, seed=0)
    assert train is data.train
    assert validation is data.validation
    assert index.tolist() == list(range(60))
    assert len(held_out(data, seed=0, size=11)[1]) == 11


@pytest.mark.parametrize("size", [0, -1, 60, 61])
def test_held_out_refuses(size, one_sentence):
    assert "1 to 59" in one_sentence(held_out, make_data(60), seed=0, size=size)


def test_held_out_never_touches_the_test_split():
    class Guarded(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was read")

    for validation in (None, make_split(5)):
        data = cast(ImageData, Guarded(name="made", train=make_split(60), validation=validation))
        held_out(data, seed=0)
        held_out(data, seed=0, size=9)


def test_subset_is_balanced_pure_and_nested():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 5 + [4] * 15)
    split = Split(torch.arange(100).view(100, 1, 1, 1).to(torch.uint8), labels)
    few, chosen = subset(split, 40, seed=0)
    # Dealt in rounds: five of class 2, and the other three share 35 of 40 as 12, 12, 11 in some order.
    counts = few.labels.bincount(minlength=5).tolist()
    assert counts[2] == 5
    assert counts[3] == 0
    assert sorted(counts[k] for k in (0, 1, 4)) == [11, 12, 12]
    assert torch.equal(few.images, split.images[chosen])
    assert torch.equal(chosen, chosen.unique())
    assert torch.equal(chosen, subset(split, 40, seed=0)[1])
    assert not torch.equal(chosen, subset(split, 40, seed=1)[1])
    assert set(chosen.tolist()) < set(subset(split, 41, seed=0)[1].tolist())
    assert subset(split, 100, seed=0)[1].tolist() == list(range(100))


@pytest.mark.parametrize("n", [0, 61])
def test_subset_refuses(n, one_sentence):
    assert "1 to 60" in one_sentence(subset, make_split(60), n, seed=0)


def test_so_many_of_each_class():
    labels = torch.tensor([0] * 9 + [1] * 5 + [3] * 7)[torch.randperm(21, generator=torch.Generator().manual_seed(3))]
    split = Split(torch.arange(21).reshape(21, 1, 1, 1).byte(), labels)
    before: set[int] = set()
    for n in range(1, 6):
        few, chosen = per_class(split, n, seed=4)
        assert few.labels.bincount().tolist() == [n, n, 0, n]
        assert torch.equal(split.labels[chosen], few.labels)
        assert torch.equal(split.images[chosen], few.images)
        assert chosen.tolist() == sorted(chosen.tolist())
        # More of each class hold every example of fewer, and are what an even subset of as many holds.
        assert before < set(chosen.tolist())
        assert torch.equal(chosen, subset(split, 3 * n, seed=4)[1])
        before = set(chosen.tolist())
    assert not torch.equal(per_class(split, 3, seed=4)[1], per_class(split, 3, seed=5)[1])


@pytest.mark.parametrize(
    ("n", "part"), [(6, "the smallest class has 5 images to take; give 1 to 5"), (0, "give 1 to 5")]
)
def test_too_many_of_each_class(n, part, one_sentence):
    split = Split(torch.zeros(14, 1, 1, 1).byte(), torch.tensor([0] * 9 + [1] * 5))
    assert part in one_sentence(per_class, split, n, seed=0)


def test_the_first_so_many(one_sentence):
    split = Split(torch.arange(5).reshape(5, 1, 1, 1).byte(), torch.arange(5))
    assert first(split, 2).labels.tolist() == [0, 1]
    assert "there are 5" in one_sentence(first, split, 6)


def test_probabilities_are_no_labels_of_a_data_set(one_sentence):
    images = torch.zeros(3, 1, 2, 2).byte()
    soft = Split(images, torch.full((3, 2), 0.5))
    assert "no class indices" in one_sentence(
        ImageData, "x", soft, None, Split(images, torch.zeros(3).long()), ("a", "b")
    )
