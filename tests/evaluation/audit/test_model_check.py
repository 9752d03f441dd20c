"""Every fault in how a model is fed is found by its own code and told how to mend; a sound model has none."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from conftest import few
from frozen_models import trained
from oracles import linear_problem
from toughen.data import load
from toughen.evaluation.audit.check_result import CHECKED
from toughen.evaluation.audit.messages import CODES
from toughen.evaluation.audit.model_check import ModelCheck, check, choose_images
from toughen.evaluation.audit.preprocessing import CUSTOMARY
from toughen.models.classifier import Classifier, normalised
from toughen.models.cost import counted
from zoo import Around

FEEDING = ["EV211", "EV212", "EV213", "EV214", "EV221", "EV222", "EV223", "EV224", "EV225", "EV228", "EV209"]


def digits() -> tuple[Tensor, Tensor]:
    test = load("mnist5k").test
    return test.images, test.labels


class Colour(nn.Module):
    """Waves of 3x8x8 images, whose length makes it know one normalisation from another; its answers are the labels."""

    def __init__(self, seed: int, before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(10, 192, generator=draw))
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return (3 * self.before(x)).sin().flatten(1) @ self.weight.T


def colours(seed: int, n: int = 128) -> Tensor:
    return torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def says(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x.float() / 255).argmax(1)


def only(found: ModelCheck) -> Any:
    (item,) = found.wrong
    return item


@pytest.mark.parametrize("name", [name for name in zoo.SOUND if name != "linear, training flag"])
def test_sound_set_ups_are_fine(name):
    set_up = zoo.SOUND[name]()
    found = check(set_up.model, set_up.x, set_up.y)
    assert found.wrong == ()
    assert found.fine


@pytest.mark.parametrize(
    "name", [n for n, (_, codes) in zoo.FAULTY.items() if codes[0] in FEEDING and "radius" not in n]
)
def test_faulty_set_ups_are_found(name):
    make, codes = zoo.FAULTY[name]
    set_up = make()
    found = check(set_up.model, set_up.x, set_up.y)
    assert set(codes) <= set(found.codes)
    assert all(item.remedy for item in found.wrong if item.code in ("EV211", "EV221", "EV222", "EV223", "EV228"))


@pytest.mark.parametrize("name", ["standard", "robust", "linear"])
def test_digit_models_are_fine_on_images_they_were_not_chosen_for(name):
    images, labels = digits()
    found = check(trained(name), images, labels, classes=tuple("0123456789"))
    assert found.fine, found.wrong
    assert [item.what for item in found.items] == list(CHECKED)
    assert {item.what for item in found.items if item.verdict == "not checked"} == {"channel order"}
    assert found["pixel range"].evidence == "0..1 (uint8, divided by 255)"
    assert found["classes"].evidence == "10 logits, labels 0..9, 10 classes"


@pytest.mark.parametrize(
    ("before", "change", "remedy"),
    [
        (
            lambda x: (x - 0.1307) / 0.3081,
            "with MNIST's normalisation taken back",
            "Leave out one Normalize(mean=(0.1307,)",
        ),
        (lambda x: 2 * x - 1, "with 0.5 / 0.5 normalisation taken back", "std=(0.5,)) in front of the network"),
        (lambda x: (x - 0.286) / 0.353, "with Fashion-MNIST's normalisation taken back", "mean=(0.286,)"),
        (
            lambda x: 0.3081 * x + 0.1307,
            "with MNIST's normalisation in front",
            "Classifier(net, mean=(0.1307,), std=(0.3081,))",
        ),
        (lambda x: 0.5 * x + 0.5, "with 0.5 / 0.5 normalisation in front", "Classifier(net, mean=(0.5,), std=(0.5,))"),
        (lambda x: x / 255, "with images in 0..255", "Classifier(net, mean=(0,), std=(1 / 255,))"),
        (lambda x: x * 255, "with images divided by 255 once more", "Classifier(net, mean=(0,), std=(255,))"),
        (lambda x: x * 127.5 + 0.5, "once more and 0.5 / 0.5", "Classifier(net, mean=(0.5,), std=(0.5,))"),
    ],
)
@pytest.mark.parametrize("name", ["standard", "robust"])
def test_normalisations_are_named_by_the_first_batch_norm(name, before, change, remedy):
    images, labels = digits()
    item = only(check(Around(trained(name), before).eval(), images, labels))
    assert item.code == "EV222"
    assert change in item.evidence
    assert remedy in item.remedy
    assert "The first BatchNorm is" in item.remedy


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_a_batch_norm_decides_on_four_images(seed):
    images, labels = digits()
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:4]
    assert check(trained("standard"), images[rows], labels[rows]).fine
    found = check(Around(trained("standard"), lambda x: 2 * x - 1).eval(), images[rows], labels[rows])
    assert "EV222" in found.codes


@pytest.mark.parametrize("seed", few(0, 1, 2))
@pytest.mark.parametrize("name", ["ImageNet's", "CIFAR-10's", "CIFAR-100's", "0.5 / 0.5"])
def test_missing_and_doubled_normalisation_by_labels_alone(seed, name):
    mean, std = CUSTOMARY[3][name]
    net, x = Colour(seed), colours(seed)
    y = says(Classifier(net, mean=mean, std=std), x)
    assert check(Classifier(net, mean=mean, std=std).eval(), x, y).fine
    missing = only(check(Classifier(net).eval(), x, y))
    assert missing.code == "EV222"
    assert "100.0% with" in missing.evidence
    assert "Classifier(net, mean=(" in missing.remedy
    doubled = nn.Sequential(Classifier(nn.Identity(), mean=mean, std=std), Classifier(net, mean=mean, std=std)).eval()
    item = only(check(doubled, x, y))
    assert "100.0% without the model's normalisation" in item.evidence
    assert item.remedy.startswith("Classifier(net), without mean and std")


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_another_normalisation_than_the_models(seed):
    net, x = Colour(seed), colours(seed)
    for meant, given in (("0.5 / 0.5", "SVHN's"), ("SVHN's", "0.5 / 0.5")):
        right, wrong = (Classifier(net, mean=m, std=s).eval() for m, s in (CUSTOMARY[3][meant], CUSTOMARY[3][given]))
        item = only(check(wrong, x, says(right, x)))
        assert f"100.0% with {meant} normalisation instead of the model's." in item.evidence
        assert item.remedy.startswith(f"Classifier(net, mean=({CUSTOMARY[3][meant][0][0]}, ")


def test_every_image_standardised_by_mistake_or_not_at_all():
    images, labels = digits()
    item = only(check(Classifier(trained("robust"), per_image=True).eval(), images, labels))
    assert "without the model's standardisation of every image." in item.evidence
    net, x = Colour(0), colours(0)
    y = says(Classifier(net, per_image=True), x)
    assert only(check(net.eval(), x, y)).remedy.startswith("Classifier(net, per_image=True).")


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_red_and_blue_exchanged(seed):
    net, x = Colour(seed, lambda x: 4 * x - 2), colours(seed)
    item = only(check(Around(net, lambda x: x.flip(1)).eval(), x, says(net, x)))
    assert (item.code, item.remedy) == ("EV228", "images = images.flip(1).")
    assert "100.0% with red and blue exchanged" in item.evidence
    grey = x[:, :1].expand(-1, 3, -1, -1)
    y = (says(net, grey) + torch.arange(len(grey)) % 8 // 7) % 10
    assert check(net.eval(), grey, y)["channel order"].evidence == "the images are grey"


def test_orders_of_labels_are_named():
    images, labels = digits()
    model = trained("standard")
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    by_name = torch.tensor(sorted(range(10), key=names.__getitem__))
    swapped = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    for order, change, given in (
        ((torch.arange(10) + 1) % 10, "shifted by +1", None),
        ((torch.arange(10) - 1) % 10, "shifted by -1", None),
        (by_name, "sorted by name, which the model has", names),
        (by_name.argsort(), "sorted by name, which the data has", names),
        (torch.arange(10).flip(0), "in reverse", None),
        (swapped, "in another order", None),
    ):
        item = only(check(model, images, order[labels], classes=given))
        assert item.code == "EV223"
        assert f"with labels {change}." in item.evidence
        assert f"with order = {order.tolist()}" in item.remedy


def test_numbers_sorted_as_text():
    x = torch.eye(12).reshape(12, 1, 3, 4).repeat(10, 1, 1, 1)
    order = torch.tensor([0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9])
    model = Around(nn.Flatten(), after=lambda z: 5 * z).eval()
    item = only(check(model, x, order[torch.arange(120) % 12]))
    assert "with labels sorted as text ('0', '1', '10', '2'), which the model has." in item.evidence
    assert f"order = {order.tolist()}" in item.remedy


def test_two_faults_at_once_are_both_found():
    images, labels = digits()
    found = check(Around(trained("standard"), lambda x: 2 * x - 1, lambda z: 2 * z).train(), images, (labels + 3) % 10)
    assert set(found.codes) == {"EV211", "EV222", "EV223"}
    assert "with what is wrong put right" in found["accuracy"].evidence


@pytest.mark.parametrize(
    ("images", "says", "remedy"),
    [
        (lambda x: x.float(), "Inputs span 0..255", "images = images / 255"),
        (lambda x: (x > 127).to(torch.uint8), "Inputs span 0..0.00392", "images = (images * 255).to(torch.uint8)"),
        (
            lambda x: (x.float() / 255 - 0.1307) / 0.3081,
            "With MNIST's normalisation taken back",
            "mean=(0.1307,), std=(0.3081,)",
        ),
        (
            lambda x: x.float() / 127.5 - 1,
            "With 0.5 / 0.5 normalisation taken back",
            "Classifier(net, mean=(0.5,), std=(0.5,))",
        ),
    ],
)
def test_ranges_are_told_and_the_rest_is_still_looked_at(images, says, remedy):
    x, y = digits()
    found = check(trained("standard"), images(x), y)
    assert found.codes == ("EV221",)
    assert says in found.wrong[0].evidence
    assert remedy in found.wrong[0].remedy
    assert found["normalisation"].verdict == "fine"


def test_images_that_nobody_can_bring_back_stop_the_check():
    x, y = digits()
    for images in (x.float() * 1.7 - 90, torch.zeros_like(x)):
        found = check(trained("standard"), images, y)
        assert found.codes == ("EV221",)
        assert {item.verdict for item in found.items[1:]} == {"not checked"}
        assert found.forwards == 0


class Picky(nn.Module):
    """Takes only some images, and says so by raising."""

    def __init__(self, accepts: Callable[[Tensor], bool], error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.accepts, self.error = accepts, error

    def forward(self, x: Tensor) -> Tensor:
        if not self.accepts(x):
            raise self.error("not what I was built for")
        return x.flatten(1)[:, :10]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[None, Tensor]:
        return None, x.flatten(1)


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (Picky(lambda x: x.shape[-1] == 224), "it takes 3x224x224: bring the images to this size"),
        (Picky(lambda x: x.shape[1] == 1, ValueError), "it takes 1x8x8: bring"),
        (
            Picky(lambda x: bool(x.max() > 1), AssertionError),
            "it takes images in 0..255: Classifier(net, mean=(0, 0, 0,)",
        ),
        (Picky(lambda x: x.dtype == torch.float64), "model.float()"),
        (Picky(lambda x: False), "look at what its first layer expects"),
        (Pair(), "return logits (N, K)"),
        (nn.Identity(), "return logits (N, K)"),
    ],
)
def test_a_model_that_does_not_take_the_images(model, remedy):
    found = check(model.eval(), colours(0), torch.zeros(128, dtype=torch.long))
    item = only(found)
    assert item.code == "EV226"
    assert remedy in item.remedy
    assert found["accuracy"].verdict == "not checked"


def test_logits_and_classes():
    net, x = Colour(0, lambda x: 4 * x - 2), colours(0)
    y, net = says(net, x), net.eval()
    assert "labels = labels - 1" in only(check(net, x, y + 1)).remedy
    assert only(check(net, x, y + 5)).evidence.endswith("but the model has 10 logits.")
    assert (
        "The data has 12 classes, but the model 10 logits" in check(net, x, y, classes="abcdefghijkl").wrong[0].evidence
    )
    foreign = Around(net, after=lambda z: F.pad(z, (0, 1), value=-1e3)).eval()
    assert "0 of 128 predictions are none of these" in check(foreign, x, y, classes="abcdefghij")["classes"].evidence
    other = check(net, x, y % 5, classes="abcde")
    assert "EV227" in other.codes
    assert "give it a head of 5 classes" in other["classes"].remedy


def test_weights_that_were_not_loaded_are_no_better_than_guessing():
    images, labels = digits()
    for seed in range(3):
        torch.manual_seed(seed)
        found = check(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval(), images, labels)
        assert found.codes == ("EV229",)
        assert found["normalisation"].verdict == "not checked"


def test_train_mode_that_fails_or_does_nothing():
    images, labels = digits()

    class Fails(Around):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("for training only")
            return super().forward(x)

    item = only(check(Fails(trained("standard")).train(), images, labels))
    assert (item.code, item.remedy) == ("EV211", "model.eval()")
    found = check(trained("linear").train(), images, labels)
    assert found.fine
    assert "which does not change the output" in found["train mode"].evidence


def test_nan_and_constant_outputs_end_what_follows():
    x, y = colours(0), torch.arange(128) % 10
    found = check(Around(Colour(0), after=lambda z: z * torch.nan).eval(), x, y)
    assert "EV203" in found.codes
    found = check(Around(Colour(0), after=lambda z: 0 * z).eval(), x, y)
    assert found.codes == ("EV209",)
    assert found["normalisation"].verdict == found["gradients"].verdict == "not checked"


def test_passes_are_counted_and_bounded_and_everything_is_left_as_found():
    images, labels = digits()
    model = Around(trained("standard"), lambda x: 2 * x - 1).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    next(model.parameters()).requires_grad_(False)
    asked = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with counted(model) as passes:
        found = check(model, images, (labels + 1) % 10)
    assert torch.equal(torch.rand(3), expected)
    # Besides, two images in both layouts of the weights.
    assert (found.forwards + 4, found.backwards + 4) == (passes.example_forwards, passes.example_backwards)
    assert found.examples == 128
    assert 0 < found.forwards + found.backwards <= 40 * 128
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_the_batch_size_changes_nothing_and_the_sample_is_spread():
    images, labels = digits()
    model = trained("standard").double()
    assert check(model, images, labels, batch_size=128).items == check(model, images, labels, batch_size=30).items
    rows = choose_images(1000, 100)
    assert len(rows.unique()) == 100
    assert torch.equal(rows, choose_images(1000, 100))
    assert len(torch.arange(10).repeat_interleave(100)[rows].unique()) == 10
    assert torch.equal(choose_images(5), torch.arange(5))


def test_a_normalisation_in_front_keeps_the_mode():
    for training in (True, False):
        model = normalised(trained("standard").train(training), (0.5,), (0.5,))
        assert {module.training for module in model.modules()} == {training}
    images, labels = digits()
    assert only(check(model, images, labels)).code == "EV222"
    with pytest.raises(ValueError, match="mean and std go together"):
        normalised(model, (0.5,), None)


@pytest.mark.parametrize(
    ("images", "labels", "settings", "says"),
    [
        (torch.rand(3, 8, 8), torch.zeros(3, dtype=torch.long), {}, "uint8 or floats"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long), {}, "at least one"),
        (torch.rand(2, 1, 8, 8), torch.zeros(3, dtype=torch.long), {}, r"give class numbers \(N,\)"),
        (torch.rand(2, 1, 8, 8), torch.tensor([0, -1]), {}, "a whole number from 0"),
        (torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), {"limit": 0}, "at least 1"),
    ],
)
def test_bad_input_is_refused(images, labels, settings, says):
    with pytest.raises(ValueError, match=says):
        check(linear_problem(0).model, images, labels, **settings)


def test_every_code_belongs_to_one_item():
    codes = [code for some in CHECKED.values() for code in some]
    assert len(codes) == len(set(codes))
    assert set(codes) <= set(CODES)
