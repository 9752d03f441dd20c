import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from toughen.models import build, load_weights, read_state

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(STATE) and all(torch.equal(found[key], STATE[key]) for key in STATE)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def test_safetensors_under_any_name(tmp_path: Path):
    for name in ("model.safetensors", "model.bin"):
        save_file(STATE, tmp_path / name)
        found = read_state(tmp_path / name)
        assert sorted(found) == sorted(STATE)
        assert torch.equal(found["a.weight"], STATE["a.weight"])
    with pytest.raises(ValueError, match='no weights under key="ema"; leave out key: the file is one state dict'):
        read_state(tmp_path / "model.bin", key="ema")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["model.pt", "model.ckpt"])
def test_both_formats_of_torch(tmp_path: Path, name: str, old: bool):
    assert same(read_state(saved(tmp_path / name, STATE, _use_new_zipfile_serialization=not old)))


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "best": 0.5},
        {"model": STATE, "optimizer": {"state": {0: {"momentum": torch.zeros(2, 3)}}, "param_groups": []}},
        {"net": STATE, "acc": torch.tensor(0.9)},
        {"run": {"model_state_dict": STATE}},
        {**STATE, "epoch": 3},
        {"metrics": {"loss": torch.zeros(3)}, "ema": STATE},
    ],
)
def test_the_only_state_dict_is_found_whatever_it_is_called(tmp_path: Path, content: dict):
    assert same(read_state(saved(tmp_path / "a.pt", content)))


def test_of_several_one_is_chosen_by_name(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"model": {"b": torch.ones(2, 2)}, "more": {"ema": STATE}})
    with pytest.raises(
        ValueError, match=r'a.pt holds several state dicts \(model, more.ema\); .* with key, like key="model"$'
    ):
        read_state(path)
    assert same(read_state(path, key="more.ema"))
    with pytest.raises(ValueError, match=r'no weights under key="ema"; it has model, more.ema$'):
        read_state(path, key="ema")
    with pytest.raises(ValueError, match=r'under key="ema"; leave out key: the file is one state dict'):
        read_state(saved(tmp_path / "b.pt", STATE), key="ema")
    model = build("small_cnn", num_classes=3)
    both: dict[str, Any] = {"model": model.state_dict(), "best": {"x": torch.zeros(1, 1)}}
    assert load_weights(model, both, key="model").tensors == 10


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("ran"),))


class Shell:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch ran",))


def test_a_file_that_needs_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = (
        "holds more than weights: it asks for {} through pickle, which may run any code, and is not opened; where you "
        "trust it, load it with the code that made it and write its state_dict() alone with torch.save or safetensors"
    )
    for content, asked in (
        ({"net": STATE, "args": logging.Formatter()}, "logging.Formatter"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (Evil(), "getattr"),
        (Shell(), f"{os.system.__module__}.system"),
    ):
        for old in (True, False):
            path = saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=not old)
            with pytest.raises(ValueError, match=f"^{re.escape(f'{path} {words.format(asked)}')}$"):
                read_state(path)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"b.pkl (holds more than weights|is damaged)"):
        read_state(tmp_path / "b.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; fetch it again"),
        (b"\n <!DOCTYPE html><html><title>Google Drive", "is a web page, not weights: the download failed; fetch it"),
        (b"<HTML>Too many requests", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a pointer of Git LFS.*run git lfs pull"),
        (b"hello, these are my weights", "is damaged"),
        (b"\x00" * 300, "is damaged"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pt {words}"):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_files_cut_short(tmp_path: Path, kind: str, share: float):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    state = {f"layer{i}.weight": torch.rand(16, 16) for i in range(8)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"a\.\w+ is damaged or cut short"):
        read_state(path)


def test_other_contents_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="holds a Tensor, not a state dict"):
        read_state(saved(tmp_path / "a.pt", torch.zeros(3)))
    with pytest.raises(
        ValueError, match=r"holds no state dict; its entries are epoch, lr; write the network's state_dict\(\)"
    ):
        read_state(saved(tmp_path / "a.pt", {"epoch": 3, "lr": 0.1}))
    with pytest.raises(ValueError, match=r"holds no state dict; its entries are nothing; write the"):
        read_state(saved(tmp_path / "a.pt", {}))
    with pytest.raises(ValueError, match=r"there is no file .*none.pt; check the path$"):
        read_state(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a folder, not a file of weights"):
        read_state(tmp_path)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "weights")
    with pytest.raises(ValueError, match=r"b.zip is damaged or cut short, or no file of weights"):
        read_state(tmp_path / "b.zip")
