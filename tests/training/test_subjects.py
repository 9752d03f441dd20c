"""What one text opens: runs, exports, files of weights, networks of timm, functions; and what is refused."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from conftest import tiny_data
from models.test_timm import Net, Timm
from photographs import photograph
from test_cli import TINY, done, failed
from toughen import recipes
from toughen.data import DATA, ImageData, Split, load
from toughen.data.base import to_float
from toughen.data.view import View
from toughen.export import export
from toughen.models import Classifier, build
from toughen.training import train
from toughen.training.evaluations import evaluate_run
from toughen.training.runs import open_run
from toughen.training.subjects import Subject, is_exported, is_reference, limited, open_subject

MINE = """
from __future__ import annotations

from dataclasses import dataclass, field

import torch

import beside


@dataclass
class Settings:
    layers: list[int] = field(default_factory=list)


def build():
    return beside.network().eval()


def noisy():
    # Draws from torch's global generator.
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))


model = beside.network().eval()
number = 3
"""
BESIDE = """
from toughen.models import build, load_weights


def network():
    model = build("small_cnn", num_classes=4, in_channels=1, width=2, norm="batch")
    load_weights(model, "small.pt")
    return model.net
"""


class Pretrained(Timm):
    """timm with weights: a network's, and as many classes as are asked for."""

    def create_model(self, name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        super().create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans)
        return drawn(Net(num_classes, in_chans), 8 if pretrained else 9)


def drawn(net: nn.Module, seed: int) -> nn.Module:
    """Numbers as after training in every tensor."""
    draw = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=draw).add(0.1) if tensor.ndim else torch.tensor(7))
    return net


def small() -> nn.Module:
    """The network of most of these tests, in inference mode."""
    with torch.random.fork_rng():
        return drawn(build("small_cnn", num_classes=4, in_channels=1, width=2, norm="batch").net, 1).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run and its export; do not write into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "tiny", tiny_data)
        folder = tmp_path_factory.mktemp("made")
        (folder / "tiny.yaml").write_text(f"{TINY}averages: [0.9]\nnormalize: data\n")
        train(recipes.load(str(folder / "tiny.yaml")), folder / "run")
        export(folder / "run", folder / "exported")
        yield folder


@pytest.fixture
def here(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files of weights and code."""
    monkeypatch.chdir(tmp_path)
    state = small().state_dict()
    torch.save(state, "small.pt")
    torch.save({"epoch": 9, "model": {f"module.{name}": tensor for name, tensor in state.items()}}, "wrapped.ckpt")
    torch.save(state, "checkpoint")
    torch.save(state, "a=b.pth")
    save_file({name: tensor.clone() for name, tensor in state.items()}, "small.safetensors")
    Path("mine.py").write_text(MINE)
    Path("beside.py").write_text(BESIDE)
    test = tiny_data().test
    np.savez("set.npz", train_images=test.images[:, 0].numpy(), train_labels=test.labels.numpy(),
             test_images=test.images[:, 0].numpy(), test_labels=test.labels.numpy())
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("beside", "mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("beside", "mine"):
        sys.modules.pop(name, None)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    module = Pretrained()
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def images() -> Tensor:
    return to_float(tiny_data().test.images)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def opened(what: str, **given: object) -> Subject:
    """A subject, opened without a trace in torch's global generator, that computes the same again."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    subject = open_subject(what, **{"data": "tiny", **given})  # pyright: ignore[reportArgumentType]
    assert torch.equal(torch.get_rng_state(), before)
    return subject


FILES = ["small.pt", "small.safetensors", "wrapped.ckpt", "a=b.pth"]
NAMED = [f"small_cnn={file}" for file in ("small.pt", "small.safetensors", "wrapped.ckpt", "checkpoint", "a=b.pth")]
CODE = ["mine.py:build", "mine.py:model", "mine:build", "mine:model"]


@pytest.mark.parametrize("what", [*FILES, *NAMED, *CODE])
def test_every_form_gives_the_very_logits(here: Path, what: str):
    subject = opened(what)
    assert torch.equal(logits(subject.model, images()), logits(small(), images()))
    assert not any(module.training for module in subject.model.modules())
    assert torch.equal(subject.test.images, tiny_data().test.images)
    assert (subject.classes, subject.threat, subject.variant) == (("a", "b", "c", "d"), None, "")
    assert subject.folder == Path("evaluation") / re.sub(r"[^a-z_]+", "-", what)
    if what in CODE:
        assert subject.said == ""
    else:
        assert subject.said.startswith(f"small_cnn: 27 tensors from {what.removeprefix('small_cnn=')}")
        assert subject.said.endswith("; images are not normalised")
        assert ("prefix 'module.' removed" in subject.said) == ("wrapped" in what)


@pytest.mark.parametrize("what", ["small.pt", "small_cnn=small.pt", "mine.py:build"])
def test_mean_and_std_are_a_first_layer(here: Path, what: str):
    subject = opened(what, mean=[0.3], std=[0.2])
    assert torch.equal(logits(subject.model, images()), logits(Classifier(small(), mean=[0.3], std=[0.2]), images()))
    assert not any(module.training for module in subject.model.modules())
    assert "not normalised" not in subject.said


def test_a_normalisation_in_the_file_is_taken_over(here: Path):
    state = {f"model.{name}": tensor for name, tensor in small().state_dict().items()}
    statistics = {"mean": torch.full((1, 1, 1, 1), 0.3), "std": torch.full((1, 1, 1, 1), 0.2)}
    torch.save({**state, **statistics}, "bundled.pt")
    expected = logits(Classifier(small(), mean=[0.3], std=[0.2]), images())
    subject = opened("bundled.pt")
    assert torch.equal(logits(subject.model, images()), expected)
    assert not any(module.training for module in subject.model.modules())
    assert subject.said.endswith("normalisation from the file: mean (0.3), std (0.2)")
    assert torch.equal(logits(opened("bundled.pt", mean=[0.3], std=[0.2]).model, images()), expected)
    with pytest.raises(ValueError, match=r"bundles a normalisation .* otherwise .*; leave out --mean and --std$"):
        open_subject("bundled.pt", data="tiny", mean=[0.5], std=[0.2])


@pytest.mark.parametrize("what", ["timm:resnet50", "hub:me/net"])
def test_a_network_with_its_pretrained_weights_and_normalisation(here: Path, timm: Pretrained, what: str, monkeypatch):
    data = tiny_data()
    test = Split(data.test.images.repeat(1, 3, 1, 1), data.test.labels)
    monkeypatch.setitem(DATA, "colour", lambda: ImageData("colour", test, None, test, data.classes))
    subject = opened(what, data="colour")
    mean, std = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)) if what == "timm:resnet50" else ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    x = to_float(test.images)
    net = drawn(Net(4, 3), 8)
    assert torch.equal(logits(subject.model, x), logits(Classifier(net, mean=mean, std=std), x))
    assert not any(module.training for module in subject.model.modules())
    assert subject.said == f"{what}: pretrained weights, normalised by mean {[*mean]} and std {[*std]}"
    other = opened(what, data="colour", mean=[0.2] * 3, std=[0.4] * 3)
    assert torch.equal(logits(other.model, x), logits(Classifier(net, mean=[0.2] * 3, std=[0.4] * 3), x))
    assert subject.folder == other.folder == Path("evaluation") / what.replace(":", "-").replace("/", "-")
    # Weights of one's own, for which nothing is fetched.
    timm.asked.clear()
    torch.save(drawn(Net(4, 3), 2).state_dict(), "net.pt")
    own = opened(f"{what}=net.pt", data="colour")
    assert torch.equal(logits(own.model, x), logits(drawn(Net(4, 3), 2), x))
    assert own.said.startswith(f"{what}: 4 tensors from net.pt")
    assert not any(pretrained for _, pretrained in timm.asked)
    assert opened("hub:me/other", data="colour").said == "hub:me/other: pretrained weights, normalised by nothing"
