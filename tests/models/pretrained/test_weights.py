import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import published
from models.published import DEEPMIND, TRADES
from toughen.models import Classifier, Normalize, build, load_weights

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
RESNET18 = (2, 2, 2, 2)

Logits = Callable[[published.State, Tensor], Tensor]
LAYOUTS: dict[str, tuple[str, dict[str, Any], published.State, Logits, str]] = {
    "torchvision": (
        "resnet18",
        {"width": 4, "stem": "imagenet"},
        published.resnet(RESNET18),
        published.resnet_logits,
        "torchvision, timm and kuangliu/pytorch-cifar",
    ),
    "kuangliu": (
        "resnet18",
        {"width": 4},
        published.kuangliu(RESNET18),
        lambda state, x: published.resnet_logits(state, x, shortcut="shortcut", linear="linear"),
        "torchvision, timm and kuangliu/pytorch-cifar",
    ),
    "robust_overfitting": (
        "preact_resnet18",
        {"width": 4},
        published.preact(),
        published.preact_logits,
        "locuslab/robust_overfitting",
    ),
    "trades": (
        "wrn-16-2",
        {},
        published.wide_resnet(TRADES, depth=16),
        lambda state, x: published.wide_resnet_logits(TRADES, state, x, 16),
        "yaodongyu/TRADES",
    ),
    "deepmind": (
        "wrn-16-2",
        {"padding": "end"},
        published.wide_resnet(DEEPMIND, depth=16),
        lambda state, x: published.wide_resnet_logits(DEEPMIND, state, x, 16),
        "google-deepmind's adversarial_robustness",
    ),
}


def small(name: str = "small_cnn", **options: Any) -> Classifier:
    return build(name, num_classes=5, **{"width": 2, **options}).double().eval()


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.model.", "net.backbone."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_what_its_own_code_does(layout: str, prefix: str, tmp_path: Path):
    name, options, state, logits, whose = LAYOUTS[layout]
    torch.save(prefixed(state, prefix), tmp_path / "weights.pt")
    model = build(name, num_classes=5, **options).double().eval()
    done = load_weights(model, tmp_path / "weights.pt")
    with torch.no_grad():
        torch.testing.assert_close(model(X), logits(state, X), rtol=0, atol=1e-10)
    assert (done.tensors, done.layout, done.prefix, done.normalization) == (len(state), whose, prefix, None)
    assert str(done) == f"{len(state)} tensors from {tmp_path / 'weights.pt'}; named as in {whose}" + (
        f"; prefix {prefix!r} removed" if prefix else ""
    )


BUNDLES: dict[str, Callable[[published.State], dict[str, Tensor]]] = {
    "robustbench": lambda s: s | {"mu": torch.tensor(MEAN).view(1, 3, 1, 1), "sigma": torch.tensor(STD)[None]},
    "deepmind": lambda s: s | {"mean": torch.tensor(MEAN).view(3, 1, 1), "std": torch.tensor(STD).view(3, 1, 1)},
    "sequential": lambda s: (
        {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)} | prefixed(s, "model.")
    ),
    "wrapped": lambda s: prefixed({"mu": torch.tensor(MEAN), "sigma": torch.tensor(STD)} | prefixed(s, "m."), "net."),
    "MadryLab/robustness": lambda s: (
        prefixed({"new_mean": torch.tensor(MEAN), "new_std": torch.tensor(STD)}, "module.normalizer.")
        | prefixed(s, "module.model.")
        | prefixed(s, "module.attacker.model.")
        | {"module.attacker.normalize.new_mean": torch.zeros(3)}
    ),
}


@pytest.mark.parametrize("layout", BUNDLES)
def test_a_bundled_normalisation_becomes_the_classifiers(layout: str):
    state = published.kuangliu(RESNET18)
    model = small("resnet18", width=4)
    done = load_weights(model, BUNDLES[layout](state))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    expected = published.resnet_logits(state, (X - mean) / std, shortcut="shortcut", linear="linear")
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-6)
    assert done.normalization == (MEAN, STD)
    assert "; normalisation from the file: mean (0.4914, 0.4822, 0.4465), std (0.2471, 0.2435, 0.2616)" in str(done)
    load_weights(small("resnet18", width=4, mean=MEAN, std=STD), BUNDLES[layout](state))  # the same is no conflict


def test_a_normalisation_that_contradicts_is_refused_and_nothing_changes():
    state = BUNDLES["robustbench"](published.kuangliu(RESNET18))
    for given, words in (
        ({"mean": MEAN, "std": (0.2, 0.2, 0.2)}, r"otherwise \(mean \(0.4914, 0.4822, 0.4465\), std \(0.2, 0.2, 0.2\)"),
        ({"per_image": True}, r"the classifier normalises otherwise \(each image by itself\); leave out its own"),
    ):
        model = small("resnet18", width=4, **given)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=words):
            load_weights(model, state)
        assert same(before, model.state_dict())
    with pytest.raises(ValueError, match=r"for which the bare network has no place; load it into toughen.Classifier"):
        load_weights(small("resnet18", width=4).net, state)
    with pytest.raises(ValueError, match=r"for images that are not in \[0, 1\] \(mean \(125.*give the classifier mean"):
        load_weights(small("resnet18", width=4), state | {"mu": torch.tensor([125.0, 123.0, 114.0])})
    with pytest.raises(ValueError, match="bundles two normalisations that differ"):
        load_weights(small("resnet18", width=4), state | {"mean": torch.zeros(3), "std": torch.ones(3)})


def test_a_classifier_of_ours_reads_its_own_state():
    torch.manual_seed(0)
    every: list[dict[str, Any]] = [{}, {"mean": MEAN, "std": STD}, {"per_image": True}]
    for options in every:
        model, plain = small(**options), small(per_image=options.get("per_image", False))
        load_weights(plain, model.state_dict())
        with torch.no_grad():
            assert torch.equal(plain(X), model(X))
    averaged = torch.optim.swa_utils.AveragedModel(small())
    other = small()
    done = load_weights(other, averaged.state_dict())
    assert (done.prefix, done.ignored) == ("module.net.", ("n_averaged",))
    assert str(done).endswith("; left aside: n_averaged")


def test_a_network_from_outside_keeps_its_own_names():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("std", torch.ones(3))
            self.fc = nn.Linear(3, 5)

    net, other = Own(), Own()
    net.get_buffer("mean").fill_(0.5)
    assert load_weights(other, net.state_dict()).normalization is None
    assert same(net.state_dict(), other.state_dict())
    assert load_weights(nn.Linear(3, 5), {"fc.weight": net.fc.weight, "fc.bias": net.fc.bias}).prefix == "fc."


def test_older_files_and_half_precision_fit():
    state = {k: v.half() for k, v in published.kuangliu(RESNET18).items() if "num_batches" not in k}
    model = small("resnet18", width=4)
    load_weights(model, state)
    assert torch.equal(model.net.get_parameter("linear.weight"), state["linear.weight"].double())


def test_the_unused_group_of_trades_is_named():
    state = LAYOUTS["trades"][2]
    extra = {f"sub_block1.layer.0.{name}": torch.zeros(2, 2) for name in "abcd"}
    done = load_weights(build("wrn-16-2", num_classes=5), state | extra)
    assert str(done).endswith("; left aside: sub_block1 (4 tensors)")
    assert done.ignored == tuple(extra)


def changed(**changes: Any) -> dict[str, Tensor]:
    state = {**published.kuangliu(RESNET18), **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        (
            "resnet18",
            changed(bn1__weight=None, bn1__bias=None),
            "a state dict does not fit this ResNet18: it lacks 'stem.1.weight' and 1 more; it looks like resnet18 with "
            "5 classes, width: 4 (98% of the tensors agree)",
        ),
        (
            "resnet18",
            changed(aux__weight=torch.zeros(2, 2)),
            "a state dict does not fit this ResNet18: it has 'aux.weight' too many; it looks like resnet18 with 5 "
            "classes, width: 4 (99% of the tensors agree)",
        ),
        (
            "resnet18",
            changed(linear__weight=torch.zeros(7, 32), linear__bias=torch.zeros(7)),
            "a state dict does not fit this ResNet18: the shape of 'linear.weight' and 1 more differs ((7, 32) in "
            "place of (5, 32)); it looks like resnet18 with 7 classes, width: 4",
        ),
        (
            "resnet18",
            published.resnet(RESNET18),
            "a state dict does not fit this ResNet18: the shape of 'conv1.weight' differs ((4, 3, 7, 7) in place of "
            "(4, 3, 3, 3)); it looks like resnet18 with 5 classes, stem: imagenet, width: 4",
        ),
        (
            "small_cnn",
            {"a.weight": torch.zeros(3, 3), "b.bias": torch.zeros(3)},
            "a state dict does not fit this SmallCNN: it lacks 'features.0.weight' and 9 more, it has 'a.weight' and 1 "
            "more too many; it looks like no network that toughen has by name",
        ),
        (
            "resnet18",
            changed(bn1__weight=torch.full((4,), torch.nan)),
            "a state dict is of no use: 'bn1.weight' holds NaN or infinity; give weights from before training "
            "diverged, or fetch the file again",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(name: str, state: dict[str, Tensor], words: str):
    model = small(name, width=4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        load_weights(model, state)
    assert same(before, model.state_dict())


def test_padding_must_be_that_of_the_code_that_trained_the_weights():
    for layout, given, words in (
        ("deepmind", "both", "pads strided convolutions at their end; build the network with padding: end"),
        ("trades", "end", "pads strided convolutions at both sides; build the network with padding: both"),
    ):
        with pytest.raises(ValueError, match=f"named as in .*{words}"):
            load_weights(build("wrn-16-2", num_classes=5, padding=given), LAYOUTS[layout][2])


def test_a_head_of_another_size_stays_when_asked():
    torch.manual_seed(0)
    state = changed(linear__weight=torch.zeros(7, 32), linear__bias=torch.zeros(7))
    model = small("resnet18", width=4)
    own = model.net.get_parameter("linear.weight").clone()
    done = load_weights(model, state, strict=False)
    assert done.head == "linear"
    assert str(done).endswith("; linear keeps its own weights")
    assert torch.equal(model.net.get_parameter("linear.weight"), own)
    assert torch.equal(model.net.get_parameter("stem.0.weight"), state["conv1.weight"])
    assert load_weights(model, changed(linear__weight=None, linear__bias=None), strict=False).head == "linear"
    fits = load_weights(model, published.kuangliu(RESNET18), strict=False)
    assert fits.head == ""
    assert fits.tensors == done.tensors + 2
    with pytest.raises(ValueError, match=r"it lacks 'stem.1.weight'"):
        load_weights(model, changed(bn1__weight=None), strict=False)


def test_a_normalisation_taken_over_lies_where_the_weights_do():
    model = small("resnet18", width=4)
    load_weights(model, BUNDLES["robustbench"](published.kuangliu(RESNET18)))
    assert isinstance(model.normalize, Normalize)
    assert model.normalize.mean.dtype == torch.float64
    assert model.normalize.mean.flatten().tolist() == pytest.approx(MEAN, abs=1e-7)
