"""ONNX: one sentence without its packages; with them, the model's own logits."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.conftest import named_data
from toughen import models
from toughen.export import export, to_onnx
from toughen.models.exported import load_model

MISSING = [name for name in to_onnx.NEEDED if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"without {' and '.join(MISSING)}")


def test_without_the_extra_it_says_what_to_type(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"type: pip install 'toughen\[onnx\]'") as caught:
        export(bare, tmp_path / "out", formats=("onnx",))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Same:
    """In place of an ONNX file: a function from images to logits."""

    def __init__(self, model: nn.Module, add: float = 0.0, rows: int = 1):
        self.model, self.add, self.rows, self.sizes = model, add, rows, []

    def __call__(self, x):
        self.sizes.append(len(x))
        with torch.no_grad():
            return self.model(torch.from_numpy(x)).numpy()[:: self.rows] + self.add


@pytest.mark.parametrize(
    ("scale", "add", "fine"), [(1, 5e-6, True), (1, 2e-5, False), (1000, 5e-4, True), (1, float("nan"), False)]
)
def test_logits_that_differ_fail_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, add: float, fine: bool
):
    monkeypatch.setattr(to_onnx, "require", lambda: None)
    monkeypatch.setattr(to_onnx, "_translate", lambda *given: None)
    linear = nn.Linear(4, 2)
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, scale)
    net = nn.Sequential(nn.Flatten(), linear).double()
    run = Same(net, add)
    monkeypatch.setattr(to_onnx, "_runner", lambda path: run)
    x = torch.rand(8, 1, 2, 2).double()
    if fine:
        assert to_onnx.write_onnx(net, tmp_path / "f", x) == pytest.approx(add, rel=1e-6)
        assert run.sizes == [8, 1, 5]
    else:
        with pytest.raises(ValueError, match="gives other logits than the model"):
            to_onnx.write_onnx(net, tmp_path / "f", x)


def test_a_fixed_batch_fails_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(to_onnx, "require", lambda: None)
    monkeypatch.setattr(to_onnx, "_translate", lambda *given: None)
    net = nn.Flatten()
    monkeypatch.setattr(to_onnx, "_runner", lambda path: Same(net, rows=2))
    with pytest.raises(ValueError, match="differ by inf"):
        to_onnx.write_onnx(net, tmp_path / "f", torch.rand(8, 1, 2, 2))


@needs_onnx
@pytest.mark.parametrize("runtime", [True, False])
def test_the_file_gives_the_logits_of_the_model(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: bool
):
    if runtime:
        pytest.importorskip("onnxruntime")
    else:
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    made = export(bare, tmp_path / "out", formats=("onnx",))
    assert any(note.startswith("model.onnx gives the model's logits on 8 test images to within") for note in made.notes)
    data = (tmp_path / "out" / "model.onnx").read_bytes()
    assert b"site-packages" not in data
    assert str(Path(to_onnx.__file__).parents[3]).encode() not in data
    run = to_onnx._runner(tmp_path / "out" / "model.onnx")
    model = load_model(tmp_path / "out")
    images = named_data().test.images.float() / 255
    for size in (1, 5, 40):
        with torch.no_grad():
            expected = model(images[:size])
        given = torch.from_numpy(run(images[:size].numpy()))
        assert given.dtype == torch.float32
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    assert "`model.onnx` takes `images`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@needs_onnx
@pytest.mark.parametrize(("name", "given"), [("wrn-10-1", {"per_image": True}), ("preact_resnet18", {})])
def test_other_networks(tmp_path: Path, name: str, given: dict):
    torch.manual_seed(0)
    model = models.build(name, num_classes=3, **given).eval()
    assert to_onnx.write_onnx(model, tmp_path / "model.onnx", torch.rand(8, 3, 16, 16)) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Undecided(nn.Module):
    """A network that asks its images what to do."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


@needs_onnx
def test_a_model_that_has_no_onnx_is_refused_in_a_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"torch cannot write this model as ONNX: .*; leave onnx out") as caught:
        to_onnx.write_onnx(Undecided(), tmp_path / "model.onnx", torch.rand(8, 1, 2, 2))
    assert "\n" not in str(caught.value)


@needs_onnx
def test_a_file_that_the_runtime_refuses_is_refused_in_a_sentence(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    # The runtime draws the padding into the pool, which then has more of it than the runtime allows.
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ZeroPad2d(1), nn.AvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match=r"onnxruntime does not run this model: .*; leave onnx out") as caught:
        to_onnx.write_onnx(net, tmp_path / "model.onnx", torch.rand(8, 1, 4, 4))
    assert "\n" not in str(caught.value)
