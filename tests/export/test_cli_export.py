"""`toughen export`: what it prints, and its exit codes."""

from pathlib import Path

import huggingface_hub
import pytest

from cli.test_app import done, failed
from toughen.export import hub
from toughen.models.exported import load_model


def test_the_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = done("export", run, "--out", "out", "--licence", "mit", "--checkpoint", "last", "--weights", "weights")
    for path in Path("out").iterdir():
        assert f"{path}: {path.stat().st_size:,} bytes" in text
    assert "note: 3 evaluations of other weights" in text
    assert text.splitlines()[-1] == "next: toughen evaluate out --data named"
    assert load_model("out")
    assert "license: mit" in Path("out/README.md").read_text(encoding="utf-8")


def test_pushing(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    monkeypatch.setattr(hub, "push", lambda folder, name, *, public: f"https://hub.invalid/{name}")
    text = done("export", bare, "--out", tmp_path / "out", "--push", "me/mine")
    assert "pushed: https://hub.invalid/me/mine (private)" in text
    assert "secret" not in text
    text = done("export", bare, "--out", tmp_path / "out", "--push", "me/mine", "--public")
    assert "pushed: https://hub.invalid/me/mine (public)" in text


def test_what_does_not_fit_is_said_in_a_sentence(bare: Path, tmp_path: Path):
    given = ("export", bare, "--out", tmp_path / "out")
    assert "did you mean 'onnx'?" in failed(*given, "--format", "safetensors,onx")
    assert "is no name on the Hub" in failed(*given, "--push", "mine")
    assert "--public goes with --push" in failed(*given, "--public")
    assert "is no run folder" in failed("export", tmp_path, "--out", tmp_path / "out")
    assert "has no evaluation of best-average-0.9 by AutoAttack" in failed(*given, "--format", "robustbench")
    assert not (tmp_path / "out").exists()
