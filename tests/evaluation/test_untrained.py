"""Networks of random weights are no better than guessing; none of them has its labels in another order."""

import pytest
import torch
from torch import Tensor, nn

from toughen.evaluation.audit import statistics
from toughen.evaluation.audit.model_check import check
from toughen.models import build

CLASSES = ("one", "two", "three")


def images(contrast: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """30 noise images of three classes, each brighter in a colour of its own."""
    y = torch.arange(3).repeat_interleave(10)
    x = torch.randint(0, 128, (30, 3, side, side), generator=torch.Generator().manual_seed(0))
    x[torch.arange(30), y] += contrast
    return x.to(torch.uint8), y


def random_net(seed: int, classes: int, name: str = "linear") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).eval()
        return build(name, num_classes=classes, in_channels=3).eval()


@pytest.mark.parametrize("contrast", [0, 120])
@pytest.mark.parametrize("classes", [5, 10, 100])
def test_no_net_of_random_weights_has_its_labels_in_another_order(classes: int, contrast: int):
    x, y = images(contrast)
    for seed in range(8):
        found = check(random_net(seed, classes), x, y, classes=CLASSES)
        assert "EV223" not in found.codes, (seed, found["label order"].evidence)


def test_nor_has_one_of_convolutions():
    x, y = images(120, side=16)
    for seed in range(8):
        assert "EV223" not in check(random_net(seed, 10, "small_cnn"), x, y, classes=CLASSES).codes


def constant(answer: int, n: int = 30) -> Tensor:
    return torch.full((n,), answer)


def test_a_class_that_no_image_has_is_no_renaming():
    """One answer for all is right on the third of the images that its label has, under many orders."""
    y = torch.arange(3).repeat_interleave(10)
    for classes in (5, 10, 100):
        for answer in range(3, classes):
            assert statistics.relabelling(constant(answer), y, classes) is None


@pytest.mark.parametrize("n", [30, 128, 300])
@pytest.mark.parametrize("classes", [3, 5, 10, 40])
def test_predictions_that_know_nothing_are_no_renaming(classes: int, n: int):
    """Not even once in fifty, though the luckiest of all orders is right on more than any one of them."""
    draw = torch.Generator().manual_seed(classes)
    found = 0
    for _ in range(50):
        y = torch.randint(3, (n,), generator=draw) * (torch.rand(n, generator=draw) < 0.8)
        prediction = torch.randint(classes, (n,), generator=draw)
        found += statistics.relabelling(prediction, y, classes) is not None
    assert found == 0


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_an_order_is_found_where_there_is_one(classes: int):
    draw = torch.Generator().manual_seed(classes)
    order = torch.randperm(classes, generator=draw).roll(1)
    y = torch.randint(classes, (10 * classes + 20,), generator=draw)
    # One in five is wrong.
    wrong = torch.rand(len(y), generator=draw) < 0.2
    prediction = torch.where(wrong, torch.randint(classes, y.shape, generator=draw), order.argsort()[y])
    found = statistics.relabelling(prediction, y, classes)
    assert found is not None
    assert found.order.tolist() == order.tolist()


def test_untrained_is_neither_sure_nor_likely():
    y = torch.arange(40) % 4
    sure = 8 * nn.functional.one_hot(y, 4).double()
    assert not statistics.untrained(sure, y)
    # Right everywhere, and hardly surer than even guesses: cross-entropy log(3 + e^0.4) - 0.4 of log 4.
    assert statistics.untrained(0.05 * sure, y)
    assert not statistics.untrained(0.2 * sure, y)
    # Sure and mostly wrong: likelier it is not, but surer.
    assert not statistics.untrained(sure, torch.where(torch.arange(40) < 16, y, (y + 1) % 4))
    assert not statistics.untrained(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
