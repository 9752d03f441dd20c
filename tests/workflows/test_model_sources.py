"""What one text opens: runs, exports, files of weights, networks of timm, functions; and what is refused."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cli.test_app import TINY, done, failed, toughen
from conftest import tiny_data
from models.pretrained.test_timm import Net, Timm
from photographs import photograph
from toughen import recipes
from toughen.data import DATA, ImageData, Split
from toughen.data.base import to_float
from toughen.data.crops import ResizeCrop
from toughen.errors import in_shell
from toughen.export import export
from toughen.models import Classifier, build
from toughen.training import train
from toughen.workflows import EvaluationSettings, ModelSource, evaluate
from toughen.workflows.model_sources import OpenedModel, is_exported, open
from toughen.workflows.run_folder import open_run
from toughen.workflows.user_code import is_reference

MINE = """
from __future__ import annotations

from dataclasses import dataclass, field

import torch

import beside


@dataclass
class Settings:
    layers: list[int] = field(default_factory=list)


def build():
    torch.rand(1)  # moves the global generator
    return beside.network().eval()


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
    """timm with weights for four classes, but of resnet18 for seven."""

    def create_model(self, name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        super().create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans)
        net = drawn(Net(num_classes, in_chans), 8 if pretrained else 9)
        vars(net)["pretrained_cfg"] = {"num_classes": 7 if name == "resnet18" else 4}
        return net


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
    """A folder with a run and its export; evaluations may be added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "tiny", tiny_data)
        folder = tmp_path_factory.mktemp("made")
        (folder / "tiny.yaml").write_text(f"{TINY}averages: [0.9]\nnormalize: data\n")
        train(recipes.load(str(folder / "tiny.yaml")), folder / "run")
        export(folder / "run", folder / "exported")
        yield folder


@pytest.fixture
def here(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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
    pixels, labels = tiny_data().test.images[:, 0].numpy(), tiny_data().test.labels.numpy()
    np.savez("set.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    # Without folders that other tests have added.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "mine.py").exists()])
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


def opened(what: str, **given: Any) -> OpenedModel:
    """A model, opened without a trace in torch's global generator."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    found = open(ModelSource(what, **{"data": "tiny", **given}))
    assert torch.equal(torch.get_rng_state(), before)
    return found


SMALL = "small_cnn="
FILES = ["small.pt", "small.safetensors", "wrapped.ckpt", "a=b.pth"]
NAMED = [f"{SMALL}{file}" for file in ("small.pt", "small.safetensors", "wrapped.ckpt", "checkpoint", "a=b.pth")]
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
        assert subject.said.startswith(
            f"small_cnn: {len(small().state_dict())} tensors from {what.removeprefix(SMALL)}"
        )
        assert subject.said.endswith("; images are not normalised")
        assert ("prefix 'model.module.' removed" in subject.said) == ("wrapped" in what)


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
    with pytest.raises(ValueError, match=r"bundles a normalisation .* otherwise .*; leave out mean and std$"):
        open(ModelSource("bundled.pt", data="tiny", mean=[0.5], std=[0.2]))


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


@pytest.mark.parametrize(
    ("given", "variant"),
    [
        ({}, ""),
        ({"checkpoint": "last"}, "average-0.9"),
        ({"weights": "weights"}, "best-weights"),
        ({"checkpoint": "last", "weights": "weights"}, "weights"),
    ],
)
def test_a_run_brings_its_data_its_ball_and_its_folder(tiny: str, made: Path, given: dict[str, str], variant: str):
    subject = opened(str(made / "run"), data=None, **given)
    run = open_run(made / "run", **given)
    assert torch.equal(logits(subject.model, images()), logits(run.model, images()))
    assert torch.equal(subject.test.images, tiny_data().test.images)
    assert (str(subject.threat), subject.folder) == ("linf:0.1", made / "run" / "evaluation")
    assert (subject.variant, subject.said, subject.classes) == (variant, "", ("a", "b", "c", "d"))


def test_an_exported_model_by_its_folder_or_its_file(tiny: str, made: Path, monkeypatch: pytest.MonkeyPatch):
    expected = logits(open_run(made / "run").model, images())
    monkeypatch.chdir(made / "exported")
    for what in (made / "exported", made / "exported" / "model.safetensors", "model.safetensors", "."):
        subject = opened(str(what))
        assert is_exported(Path(what))
        assert torch.equal(logits(subject.model, images()), expected)
        assert (str(subject.threat), subject.variant, subject.said) == ("linf:0.1", "", "")
        assert subject.folder == Path("evaluation/exported")
    # As weights of a network, they bring their normalisation along.
    named = opened(f"small_cnn={made}/exported/model.safetensors")
    # Numbers of seven digits.
    torch.testing.assert_close(logits(named.model, images()), expected, rtol=0, atol=1e-6)
    assert named.threat is None
    assert not is_exported(made / "run")


def test_a_size_brings_the_images_to_it(here: Path, made: Path):
    pixels = [Image.fromarray(image) for image in tiny_data().test.images[:, 0].numpy()]
    centres = torch.stack([torch.tensor(ResizeCrop(16).centre(image).transpose(2, 0, 1)) for image in pixels])
    Path("net.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))\n")
    subject = opened("net.py:net", size=16)
    assert torch.equal(subject.test.images, centres)
    assert logits(subject.model, to_float(centres)).shape == (40, 4)
    with pytest.raises(ValueError, match="the model takes images of 1 channels and those of tiny have 3"):
        open(ModelSource(str(made / "exported"), data="tiny", size=16))


def test_photographs_need_a_size_and_the_option_is_named(here: Path):
    for number in range(12):
        path = Path("images") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number, 20 + number, 30).save(path)
    with pytest.raises(ValueError, match=r"bring all images to one mode and size, or give size, like size=224, to c"):
        open(ModelSource("mine.py:build", data="images"))
    assert opened("mine.py:build", data="images", size=24).test.shape == (3, 24, 24)


RUN_ONLY = "--checkpoint and --weights go with a run folder, which {} is not; leave them out"
OWN_ONLY = "a run is evaluated on the data it was trained on; leave out --data, --size, --mean and --std, or export it"
NOTHING = "there is no {}; give a run folder, an exported model, a file of weights (NETWORK=FILE), timm:NAME or FILE."
REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("RUN", {"data": "tiny"}, OWN_ONLY),
    ("RUN", {"data": None, "size": 8}, OWN_ONLY),
    ("RUN", {"data": None, "mean": [0.5]}, OWN_ONLY),
    ("RUN", {"data": None, "checkpoint": "first"}, "checkpoint is 'first'; it must be best or last"),
    ("RUN", {"data": None, "weights": "average-0.5"}, "has no weights 'average-0.5'; it has weights, average-0.9"),
    ("nowhere", {"data": None}, NOTHING),
    ("nowhere", {}, NOTHING),
    (".", {}, ". is no run folder: it holds no recipe.yaml; give the --out of a toughen train"),
    ("EXPORT", {"std": [0.5]}, "{} brings its own normalisation; leave out --mean and --std"),
    ("EXPORT", {"checkpoint": "last"}, RUN_ONLY),
    ("EXPORT", {"data": None}, "{} is a model without data; give --data, like --data tiny"),
    ("EXPORT", {"data": "mnist5k"}, "the model tells 4 classes apart and mnist5k has 10; give data with the classes a"),
    ("small.pt", {"weights": "weights"}, RUN_ONLY),
    ("timm:resnet50", {"checkpoint": "last"}, RUN_ONLY),
    ("mine.py:build", {"checkpoint": "last"}, RUN_ONLY),
    ("small.pt", {"data": None}, "{} is a model without data; give --data, like --data cifar10"),
    ("small.pt", {"data": "mnist5k"}, "{} tells 4 classes apart and mnist5k has 10 (0, 1, 2, 3, 4, ...); give "),
    ("small_cnn=small.pt", {"data": "mnist5k"}, "or fine-tune it: toughen train finetune"),
    ("small.pt", {"mean": [0.5]}, "mean and std go together, got mean without std"),
    ("small.pt", {"mean": [0.5] * 3, "std": [0.5] * 3}, "mean needs one number for each of the 1 channels, got 3"),
    ("mine.py:build", {"std": [0.5]}, "mean and std go together, got std without mean"),
    ("timm:resnet50", {"std": [0.5]}, "mean and std go together, got std without mean"),
    ("none.pt", {}, "there is no file none.pt"),
    ("smal_cnn=small.pt", {}, "'smal_cnn' is not a known model; allowed: small_cnn"),
    ("resnet18=small.pt", {}, "small.pt does not fit this ResNet"),
    ("other.pt", {}, "other.pt does not say of which network it is; write NETWORK=FILE, like resnet18=other.pt"),
    ("nearly.pt", {}, "nearly.pt does not say of which network it is (nearest: small_cnn); write NETWORK=FILE, like r"),
    ("cut.safetensors", {}, "cut.safetensors is damaged or cut short"),
    ("timm:resnet51", {}, "timm has no model 'resnet51'"),
    ("hub:net", {}, "'hub:net' is not a name on the Hub"),
    ("mine.py:bild", {}, "mine.py has no 'bild'; give FILE.py:NAME or package.module:NAME"),
    ("mine.py:number", {}, "mine.py:number gave int; it must be or return a torch.nn.Module"),
    ("yours.py:build", {}, "'yours.py:build' cannot be imported: "),
    ("broken.py:build", {}, "'broken.py:build' cannot be imported: "),
    ("asking.py:build", {}, "'asking.py:build' cannot be imported: No module named 'no_such_module'"),
    ("no.such.module:build", {}, "'no.such.module:build' cannot be imported: No module named 'no'"),
    ("mine.py:build", {"data": "tinny"}, "did you mean 'tiny'"),
]


@pytest.mark.parametrize(("what", "given", "says"), REFUSED)
def test_refused(here: Path, made: Path, timm: Pretrained, what: str, given: dict[str, object], says: str):
    what = {"RUN": str(made / "run"), "EXPORT": str(made / "exported")}.get(what, what)
    state = small().state_dict()
    torch.save({"weight": torch.rand(3, 3)}, "other.pt")
    torch.save({name: tensor for name, tensor in state.items() if name != "linear.bias"}, "nearly.pt")
    Path("cut.safetensors").write_bytes(Path("small.safetensors").read_bytes()[:200])
    Path("broken.py").write_text("def build(:")
    Path("asking.py").write_text("import no_such_module")
    with pytest.raises(ValueError, match=r".") as caught:
        opened(what, **given)
    assert says.format(what) in in_shell(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "std" in given or not any(pretrained for _, pretrained in timm.asked)


def test_pretrained_weights_for_other_images_are_refused(here: Path, timm: Pretrained):
    with pytest.raises(ValueError, match=r"^timm:resnet18 tells 7 classes apart and tiny has 4 \(a, b, c, d\); "):
        open(ModelSource("timm:resnet18", data="tiny", size=8))
    with pytest.raises(ValueError, match=r"^timm:resnet50 was .* 3 channels, .* tiny have 1; give size, like size=224"):
        open(ModelSource("timm:resnet50", data="tiny"))
    assert opened("timm:resnet50", size=224).test.shape == (3, 224, 224)


def test_what_is_an_import_and_what_is_not():
    for text in ("a.py:b", "my folder/a.py:b", "/x/a.py:_b", "a:b", "a.b_c:d"):
        assert is_reference(text)
    for text in ("pgd-20", "a.py", "a.py:", ":b", "a/b:c", "a:b.c", "a.py:3", "small_cnn=a.pt", "hub:me/net"):
        assert not is_reference(text)


def test_evaluating_a_file_of_weights_on_an_npz_from_the_command_line(here: Path):
    given = ("--data", "set.npz", "--threat", "linf:8/255")
    text = done("evaluate", "small_cnn=small.pt", *given, "--suite", "pgd-2")
    folder = Path("evaluation/small_cnn-small-pt/pgd-2_linf-8over255")
    assert text.startswith("small_cnn: 26 tensors from small.pt; images are not normalised\n")
    assert f"results: {folder / 'result.json'}" in text
    result = json.loads((folder / "result.json").read_text())
    right = (logits(small(), images()).argmax(1) == tiny_data().test.labels).sum()
    assert (result["clean_accuracy"], result["n"]) == (int(right) / 40, 40)
    assert "is a model without data; give --data" in failed("evaluate", "small_cnn=small.pt")
    assert "does not say within which ball; give --threat" in failed("evaluate", "small.pt", "--data", "set.npz")
    assert text.splitlines()[0] in toughen("check", "small_cnn=small.pt", "--data", "set.npz").stdout.splitlines()


def test_the_names_of_the_folders(here: Path, made: Path):
    def folder(what: str, **given: Any) -> str:
        fed = {name: given.pop(name) for name in ("data", "checkpoint", "weights") if name in given}
        out = given.pop("out", None)
        found, into = evaluate(ModelSource(what, **fed), EvaluationSettings("pgd-1", limit=4, **given), out=out)
        assert found.n == 4
        assert (into / "result.json").is_file()
        return str(into.relative_to(made)) if into.is_relative_to(made) else str(into)

    run, exported = str(made / "run"), str(made / "exported")
    assert folder(run) == "run/evaluation/pgd-1_n4"
    assert folder(run, threat="linf:0.1") == "run/evaluation/pgd-1_n4"
    assert folder(run, threat="l2:0.5", seed=3) == "run/evaluation/pgd-1_l2-0.5_n4_seed3"
    assert folder(run, checkpoint="last", independent=True) == "run/evaluation/pgd-1_n4_average-0.9_independent"
    assert folder(run, weights="weights", step_size=2 / 255) == "run/evaluation/pgd-1_step-2over255_n4_best-weights"
    assert folder(exported, data="tiny", keep="uint8") == "evaluation/exported/pgd-1_n4_uint8"
    assert folder(exported, data="set.npz", keep="uint8") == "evaluation/exported-on-set/pgd-1_n4_uint8"
    assert folder("mine:build", data="tiny", threat="linf:4/255") == "evaluation/mine-build/pgd-1_linf-4over255_n4"
    assert folder(run, out=Path("mine")) == "mine"


def test_a_step_size_is_that_of_ones_own_suite_too(here: Path):
    with Path("mine.py").open("a") as file:
        file.write("from toughen.attacks import AttackSpec\nSUITE = {'one': AttackSpec(name='pgd', steps=2)}\n")
        file.write("NONE = {'fab': AttackSpec(name='fab')}\n")
    source = ModelSource("mine.py:build", data="tiny")
    usually = EvaluationSettings("mine.py:SUITE", threat="linf:0.1", limit=8)
    found, folder = evaluate(source, replace(usually, step_size=8 / 255))
    assert folder.name == "mine-py-SUITE_linf-0.1_step-8over255_n8"
    assert found.settings["one"]["step_size"] == 8 / 255
    usual, _ = evaluate(source, usually)
    assert usual.settings["one"]["step_size"] != 8 / 255
    with pytest.raises(ValueError, match="no attack of this suite has a step size; leave step_size out"):
        evaluate(source, replace(usually, suite="mine.py:NONE", step_size=8 / 255))
