"""Files of weights as training codes write them: what is the network is loaded, and what is not is named."""

import argparse
import collections
import contextlib
import json
import pathlib
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cli.test_app import done, failed
from conftest import tiny_data
from toughen import workflows
from toughen.attacks import AttackSpec
from toughen.data.base import to_float
from toughen.evaluation import transfer
from toughen.models import build, load_weights, read_state
from toughen.threat import Linf
from toughen.workflows import EvaluationSettings, ModelSource

State = dict[str, Tensor]
X = to_float(tiny_data().test.images)
GIVEN: dict[str, Any] = {"num_classes": 4, "in_channels": 1, "width": 2, "norm": "batch"}


def state(seed: int = 1, **given: Any) -> State:
    """What a small network of four classes holds after training."""
    net = build("small_cnn", **{**GIVEN, **given}).net
    draw = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=draw).add(0.1) if tensor.ndim else torch.tensor(7))
    return net.state_dict()


class Loud(argparse.Namespace):
    """Settings of a stranger's own class, which must not be made."""

    def __setstate__(self, kept: Any) -> None:
        raise AssertionError


def under(prefix: str, content: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in content.items()}


def logits(weights: State, x: Tensor = X, **given: Any) -> Tensor:
    net = build("small_cnn", **{**GIVEN, **given}).net.eval()
    net.load_state_dict(weights)
    with torch.no_grad():
        return net(x)


def amid(content: State, part: str) -> State:
    """Names with a wrapper amid them, as DataParallel around a part of the network leaves them."""
    return {re.sub(r"^features\.", f"features.{part}.", name): tensor for name, tensor in content.items()}


METRICS = {"train_acc.tp": torch.zeros(4), "train_acc.fn": torch.zeros(4), "val_cm.confmat": torch.zeros(4, 4)}
LOSS = {"criterion.pos_weight": torch.ones(4)}
QUEUE = {"queue": torch.zeros(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
MOMENTUM = {"state": {0: {"momentum_buffer": torch.zeros(2, 1, 3, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
BOOKS = {"epoch": 9, "lr_schedulers": [{"last_epoch": 9}], "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x"))}
ONE = state(1)

# What is loaded is always the state of the first seed.
LOADED: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "plain": (ONE, "", ()),
    "lightning": (
        {"state_dict": under("model", ONE) | LOSS | METRICS, "optimizer_states": [MOMENTUM], **BOOKS},
        "state_dict.model.",
        ("criterion.pos_weight", "train_acc", "val_cm.confmat", "optimizer_states"),
    ),
    "lightning, net": ({"state_dict": LOSS | under("net", ONE)}, "state_dict.net.", ("criterion.pos_weight",)),
    "lightning, backbone in net": (
        {"state_dict": under("net.backbone", ONE) | {"loss_fn.weight": torch.ones(4)}},
        "state_dict.net.backbone.",
        ("loss_fn.weight",),
    ),
    "the module is the network": (
        {"state_dict": ONE | LOSS | METRICS | {"loss_fn.weight": torch.ones(4)}},
        "state_dict.",
        ("criterion.pos_weight", "train_acc (2 tensors)", "val_cm.confmat", "loss_fn.weight"),
    ),
    "metrics of unknown names": (ONE | {"seen.total": torch.zeros(()), "seen.sums": torch.zeros(4)}, "", ("seen",)),
    "optimiser, scheduler, scaler": (
        {"net": ONE, "optimizer": MOMENTUM, "scheduler": {"best": 1}, "scaler": {"scale": torch.ones(1)}, **BOOKS},
        "net.",
        ("optimizer", "scaler.scale"),
    ),
    "moments by name": ({"model": ONE, "optimizer": {"exp_avg": state(2)}}, "model.", ("optimizer",)),
    "numpy's best accuracy": ({"model": ONE, "best_acc": np.float64(0.5), "seen": np.arange(3)}, "model.", ()),
    "queue": ({"state_dict": under("module.encoder_q", ONE) | QUEUE}, "state_dict.module.encoder_q.", ("queue",)),
    "queue in the network": (ONE | QUEUE, "", ("queue", "queue_ptr")),
    "momentum encoder of other width": (
        {"state_dict": under("encoder_q", ONE) | under("encoder_k", state(2, width=3))},
        "state_dict.encoder_q.",
        ("encoder_k",),
    ),
    "teacher of other classes": (
        under("student", ONE) | under("teacher", state(2, num_classes=9)),
        "student.",
        ("teacher",),
    ),
    "averaged": (under("module", ONE) | {"n_averaged": torch.tensor(3)}, "module.", ("n_averaged",)),
    "compiled in parallel": (under("module._orig_mod", ONE), "module._orig_mod.", ()),
    "parallel, compiled": (under("_orig_mod.module", ONE), "_orig_mod.module.", ()),
    "parallel features": (amid(ONE, "module"), "", ()),
    "fsdp": (
        {name.replace("features.", "features._fsdp_wrapped_module."): t for name, t in under("module", ONE).items()},
        "",
        (),
    ),
    "checkpointed features": (amid(ONE, "_checkpoint_wrapped_module"), "", ()),
    "opacus": (under("_module", ONE), "_module.", ()),
    "profiled": (ONE | {"total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1)}, "", ("total_ops",)),
    "the average is the same": ({"model": ONE, "model_ema": state(1)}, "model.", ("model_ema",)),
    "the first of a list": ({"models": [ONE, state(2, width=3)]}, "models.0.", ("models.1",)),
    **{name: ({name: ONE, "epoch": 1}, f"{name}.", ()) for name in ("weights", "params", "state", "ema", "model_ema")},
}


@pytest.mark.parametrize("case", LOADED)
def test_what_is_the_network_is_loaded_and_the_rest_is_named(case: str, tmp_path: Path):
    content, prefix, aside = LOADED[case]
    torch.save(content, tmp_path / "a.ckpt")
    model = build("small_cnn", **GIVEN).eval()
    found = load_weights(model, tmp_path / "a.ckpt")
    with torch.no_grad():
        assert torch.equal(model(X), logits(ONE))
    assert found.prefix == prefix
    assert found.tensors == len(ONE)
    said = str(found).partition("left aside: ")[2]
    assert all(name in said for name in aside)
    assert bool(said) == bool(found.aside) == bool(aside)
    assert not set(found.ignored) & {f"{prefix}{name}" for name in ONE}
    # The same by its own key, and as a file of safetensors where it is one state dict.
    load_weights(model, tmp_path / "a.ckpt", key=prefix.rstrip(".") or ".")
    if all(isinstance(value, Tensor) for value in content.values()):
        save_file({name: tensor.clone() for name, tensor in content.items()}, tmp_path / "a.safetensors")
        assert load_weights(model, tmp_path / "a.safetensors").prefix == prefix


TWO = state(2)
SEVERAL: dict[str, tuple[Any, tuple[str, str]]] = {
    "timm": (
        {"state_dict": ONE, "state_dict_ema": TWO, "optimizer": MOMENTUM, "args": argparse.Namespace(a=1), "epoch": 3},
        ("state_dict", "state_dict_ema"),
    ),
    "model and model_ema": ({"model": under("module", ONE), "model_ema": TWO}, ("model.module", "model_ema")),
    "moco": (
        {"state_dict": under("module.encoder_q", ONE) | under("module.encoder_k", TWO) | QUEUE},
        ("state_dict.module.encoder_q", "state_dict.module.encoder_k"),
    ),
    "student and teacher": ({"student": ONE, "teacher": TWO}, ("student", "teacher")),
    "online and target": (under("online_network", ONE) | under("target_network", TWO), ("online_network", "target_n")),
    "lightning's own average": ({"state_dict": ONE, "current_model_state": TWO}, ("state_dict", "current_model_state")),
    "the average in the network": (ONE | under("ema", TWO), (".", "ema")),
    "ensemble": ({"models": [ONE, TWO]}, ("models.0", "models.1")),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_of_two_that_fit_the_user_chooses(case: str, tmp_path: Path):
    content, keys = SEVERAL[case]
    keys = (keys[0], "target_network") if case == "online and target" else keys
    torch.save(content, tmp_path / "a.pt")
    model = build("small_cnn", **GIVEN).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(", ".join(keys))) as caught:
        load_weights(model, tmp_path / "a.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'a.pt'} holds 2 groups of tensors that fit this SmallCNN ({', '.join(keys)}); "
        f'say which is meant with key, like key="{keys[0]}"'
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for key, weights in zip(keys, (ONE, TWO), strict=True):
        found = load_weights(model, tmp_path / "a.pt", key=key)
        with torch.no_grad():
            assert torch.equal(model(X), logits(weights))
        assert (found.prefix.rstrip(".") or ".") == key
        other = keys[key == keys[0]].partition(".")[0]
        assert any(name.startswith(other) for name, _ in found.aside)
    with pytest.raises(ValueError, match=r'^\S+ has no weights under key="state_dct"; '):
        load_weights(model, tmp_path / "a.pt", key="state_dct")


REFUSED: dict[str, tuple[Any, str]] = {
    "a layer more, which might be computed with": (
        ONE | {"attention.weight": torch.zeros(3, 3)},
        "it has 'attention.weight' too many",
    ),
    "a layer more in a part": (ONE | {"features.9.se.pos_weight": torch.zeros(3)}, "'features.9.se.pos_weight' too"),
    "BatchNorm of the images": (ONE | {"bn_in.running_mean": torch.zeros(1)}, "it has 'bn_in.running_mean' too many"),
    "a link of a chain": (under("0", ONE) | {"1.weight": torch.zeros(4, 4)}, "it has '1.weight' too many"),
    "half": ({name: ONE[name] for name in list(ONE)[:15]}, "it lacks "),
    "half of it, under two names": (
        {("a." if "feat" in name else "b.") + name: tensor for name, tensor in ONE.items()},
        "it lacks 'linear.weight' and 1 more",
    ),
    "none": ({"epoch": 3, "state_dict": {}}, "holds no state dict; its entries are epoch, state_dict; write"),
    "an optimiser's alone": ({"optimizer": {"exp_avg": ONE}}, "does not fit this SmallCNN"),
    "settings alone": (argparse.Namespace(lr=1), "holds a Settings, not a state dict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_be_another_network_is_refused(case: str, tmp_path: Path):
    content, says = REFUSED[case]
    torch.save(content, tmp_path / "a.pt")
    model = build("small_cnn", **GIVEN).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        load_weights(model, tmp_path / "a.pt")
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def trunk(content: State, prefix: str) -> State:
    return under(prefix, {name: tensor for name, tensor in content.items() if not name.startswith("linear.")})


PROJECTION = {"0.weight": torch.zeros(16, 16), "0.bias": torch.zeros(16), "2.weight": torch.zeros(8, 16)}
PRETRAINED: dict[str, tuple[State, str | None, str]] = {
    "supcon": (trunk(ONE, "encoder") | under("head", PROJECTION), None, "encoder."),
    "moco's query": (
        trunk(ONE, "module.encoder_q") | under("module.encoder_q.linear", PROJECTION) | trunk(TWO, "module.encoder_k"),
        "module.encoder_q",
        "module.encoder_q.",
    ),
    "a chain whose end is another head": (trunk(ONE, "0") | under("1", PROJECTION), None, "0."),
    "byol": (
        trunk(ONE, "online_encoder.net") | under("online_predictor", PROJECTION) | trunk(TWO, "target_encoder.net"),
        "online_encoder",
        "online_encoder.net.",
    ),
    "the one that has the head too": (under("model", ONE) | trunk(TWO, "encoder"), None, "model."),
}


@pytest.mark.parametrize("case", PRETRAINED)
def test_a_trunk_is_found_whatever_its_head_was(case: str):
    content, key, prefix = PRETRAINED[case]
    model = build("small_cnn", **GIVEN)
    if key is not None:
        with pytest.raises(ValueError, match="holds 2 groups of tensors that fit"):
            load_weights(model, content, strict=False)
    found = load_weights(model, content, key=key, strict=False)
    assert found.prefix == prefix
    assert found.head == ("" if "too" in case else "linear")
    for name, tensor in ONE.items():
        assert torch.equal(model.net.state_dict()[name], tensor) or name.startswith("linear.")
    with pytest.raises(ValueError, match="does not fit") if "too" not in case else contextlib.nullcontext():
        load_weights(model, content, key=key)


def test_nothing_of_the_settings_in_a_file_is_made(tmp_path: Path):
    torch.save({"model": ONE, "args": argparse.Namespace(where=pathlib.PurePosixPath("/x"))}, tmp_path / "a.pt")
    assert read_state(tmp_path / "a.pt").keys() == ONE.keys()
    torch.save({"model": ONE, "args": Loud()}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"it asks for .*Loud through pickle"):
        read_state(tmp_path / "b.pt")
    assert not any("argparse" in str(known) for known in torch.serialization.get_safe_globals())


def test_dicts_of_settings_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class CfgNode(dict[str, Any]):
        """As yacs has it."""

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    tree = CfgNode(lr=0.1, data=CfgNode(name="x"))
    vars(tree)["frozen"] = True
    content = {"model": ONE, "config": tree, "seen": collections.defaultdict(list, a=[1])}
    module = types.ModuleType("yacs.config")
    vars(module)["CfgNode"] = CfgNode
    for old in (False, True):
        monkeypatch.setitem(sys.modules, "yacs.config", module)
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
        # Where it is not installed.
        monkeypatch.setitem(sys.modules, "yacs.config", None)
        assert read_state(tmp_path / "a.pt").keys() == ONE.keys()


def test_a_normalisation_goes_with_the_group_that_it_lies_beside(tmp_path: Path):
    own, other = ({"mean": torch.full((1,), m), "std": torch.full((1,), 0.2)} for m in (0.3, 0.6))
    torch.save(
        {
            "a": under("net", ONE) | under("normalize", own),
            "b": under("net", state(2)) | under("normalize", other),
            "criterion": {"weight": torch.ones(4, 1)},
        },
        tmp_path / "a.pt",
    )
    for key, mean in (("a", 0.3), ("b", 0.6)):
        model = build("small_cnn", **GIVEN).eval()
        found = load_weights(model, tmp_path / "a.pt", key=key)
        assert found.normalization == ((mean,), (0.2,))
        assert not any(name.startswith(f"{key}.") for name in found.ignored)


@pytest.fixture
def here(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of timm's kind."""
    monkeypatch.chdir(tmp_path)
    torch.save(SEVERAL["timm"][0], "both.pth")
    tests = tiny_data().test
    pixels, labels = tests.images[:, 0].numpy(), tests.labels.numpy()
    np.savez("set.npz", x_train=pixels // 2, y_train=labels, x_test=pixels, y_test=labels)
    return tmp_path


def told(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match="state_dict, state_dict_ema") as caught:
        call()
    return str(caught.value)


def test_every_verb_in_python(here: Path):
    what = "both.pth"
    ask = EvaluationSettings("pgd-1", limit=8, threat="linf:0.1")
    adaptive = EvaluationSettings("quick", limit=4, threat="linf:0.1")
    for key, weights in (("state_dict", ONE), ("state_dict_ema", TWO)):
        source = ModelSource(what, data="tiny", key=key)
        opened = workflows.open(source)
        with torch.no_grad():
            assert torch.equal(opened.model(X), logits(weights))
        assert opened.folder.name == f"both-pth-{key}"
    # What follows is of the last of the two.
    found, folder = workflows.evaluate(source, ask)
    right = int((logits(TWO)[:8].argmax(1) == tiny_data().test.labels[:8]).sum())
    assert (found.clean_accuracy, found.n) == (right / 8, 8)
    assert folder.parent == opened.folder
    kept = json.loads((folder / "result.json").read_text())
    assert "prefix 'state_dict_ema.' removed; left aside: state_dict (26 tensors)" in kept["notes"][0]
    analysed = workflows.analyse(source, only=["gradients"], limit=4, threat="linf:0.1")
    assert analysed.folder == Path("analysis/both-pth-state_dict_ema")
    given: dict[str, Any] = {"threat": Linf(0.1), "attack": AttackSpec(name="pgd", steps=1)}
    shown = transfer(opened.model, opened.model, X[:8], tiny_data().test.labels[:8], **given)
    assert shown.summary()["n"] == 8
    workflows.evaluate(ModelSource(what, data="tiny", key="state_dict"), adaptive)
    near: dict[str, Any] = {"against": "tiny", "counts": [4], "threshold": 0.01}
    workflows.label("tiny", ModelSource(what, key="state_dict"), **near, out=Path("extra"))
    for verb in (
        lambda: workflows.open(ModelSource(what, data="tiny")),
        lambda: workflows.evaluate(ModelSource(what, data="tiny"), ask),
        lambda: workflows.analyse(ModelSource(what, data="tiny"), threat="linf:0.1"),
        lambda: workflows.label("tiny", what, **near, out=Path("other")),
    ):
        assert told(verb).endswith('say which is meant with key, like key="state_dict"')


def test_every_verb_on_the_command_line(here: Path):
    fed = ("--data", "set.npz")
    attack = ("--threat", "linf:0.1", "--limit", 8)
    for verb, more in (
        ("evaluate", (*fed, *attack, "--suite", "pgd-1")),
        ("analyse", (*fed, *attack, "--only", "gradients")),
        ("check", fed),
    ):
        assert failed(verb, "both.pth", *more).endswith("say which is meant with --key, like --key state_dict\n")
    text = done("evaluate", "both.pth", *fed, *attack, "--suite", "pgd-1", "--key", "state_dict_ema")
    assert "prefix 'state_dict_ema.' removed; left aside: state_dict (26 tensors), optimizer" in " ".join(text.split())
    pool = ("label", "set.npz", "--against", "set.npz", "--count", 4, "--threshold", 0.01)
    assert "with --key, like" in failed(*pool, "--scorer", "both.pth", "--out", "a")
    second = (*pool, "--scorer", "both.pth", "--key", "state_dict", "--labeller", "both.pth", "--out", "b")
    assert "with --labeller-key, like --labeller-key state_dict" in failed(*second)
    done(*second, "--labeller-key", "state_dict_ema")
    assert "--key goes with a file of weights, which timm:resnet50 is not; leave it out" in failed(
        "evaluate", "timm:resnet50", *fed, "--key", "x"
    )
    assert "--labeller-key goes with --labeller" in failed(*pool, "--scorer", "x", "--labeller-key", "y", "--out", "c")


def test_networks_of_other_kinds_in_one_file_are_told_apart(here: Path):
    torch.save({"a": ONE, "b": state(2, width=3), "c": state(3, num_classes=9)}, "mixed.pt")
    says = "holds several networks (a: small_cnn with 4 classes, width: 2, norm: batch, in_channels: 1, b: small_cnn"
    with pytest.raises(ValueError, match=re.escape(says)):
        workflows.open(ModelSource("mixed.pt", data="tiny"))
    opened = workflows.open(ModelSource("mixed.pt", data="tiny", key="b"))
    with torch.no_grad():
        assert torch.equal(opened.model(X), logits(state(2, width=3), width=3))


def test_images_of_other_channels_are_named(here: Path):
    torch.save(state(1, in_channels=3), "colour.pt")
    with pytest.raises(ValueError, match=r"^colour.pt was trained on images of 3 channels, .* have 1; give size, like"):
        workflows.open(ModelSource("small_cnn=colour.pt", data="tiny"))
    assert workflows.open(ModelSource("small_cnn=colour.pt", data="tiny", size=8)).test.shape == (3, 8, 8)
