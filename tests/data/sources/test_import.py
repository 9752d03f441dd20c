"""`toughen import`: CIFAR's pickles become an .npz file, and a pickle that asks for more than arrays never runs."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from layouts import CLASSES, known, python2_pickle, write_folder, write_python
from toughen.cli.app import app
from toughen.data import ImageData, load
from toughen.data.sources.cifar_pickle import import_folder, read_pickle

PARTS = known()


def same(data: ImageData) -> bool:
    return data.classes == CLASSES and all(
        np.array_equal(data.splits[part].images.numpy().transpose(0, 2, 3, 1), images)
        and data.splits[part].labels.tolist() == labels.tolist()
        for part, (images, labels) in PARTS.items()
    )


@pytest.mark.parametrize("protocol", [None, 2, 3, 4])
@pytest.mark.parametrize("fine", [False, True])
def test_imported_bit_for_bit(tmp_path, protocol, fine):
    folder = write_python(tmp_path / "cifar", PARTS, protocol, fine)
    assert import_folder(folder, tmp_path / "out" / "cifar.npz") == {"train": 12, "test": 6}
    assert same(load(str(tmp_path / "out" / "cifar.npz")))


def test_the_same_bytes_each_time(tmp_path):
    folder = write_python(tmp_path / "cifar", PARTS)
    import_folder(folder, tmp_path / "a.npz")
    import_folder(folder, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_command(tmp_path):
    folder = write_python(tmp_path / "cifar", PARTS)
    result = CliRunner().invoke(app, ["import", str(folder), "--out", str(tmp_path / "cifar.npz")])
    assert result.exit_code == 0, result.stderr
    assert "12" in result.stdout
    assert f"data={tmp_path / 'cifar.npz'}" in result.stdout
    again = CliRunner().invoke(app, ["import", str(folder), "--out", str(tmp_path / "cifar.npz")])
    assert again.exit_code == 2
    assert again.stderr.startswith("error: ")
    assert "not overwritten" in again.stderr
    assert same(load(str(tmp_path / "cifar.npz")))


def test_loading_says_to_import(tmp_path, one_sentence):
    for fine in (False, True):
        folder = write_python(tmp_path / f"cifar{fine}", PARTS, 4, fine)
        assert f"toughen import {folder} --out" in one_sentence(load, str(folder))


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def global_opcode(module: str, name: str, tail: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + tail


def hostile(path: Path) -> dict[str, tuple[bytes, str]]:
    text = f"open({str(path)!r}, 'w')"
    call = b"(U" + bytes([len(text)]) + text.encode() + b"tR."
    objects = pickle.dumps({b"data": np.array([Runs(path)], object)}, 2)
    records = pickle.dumps({b"data": np.rec.array(np.ones(1))}, 2)
    inner = b"(i" + b"os\nsystem\n" + b"."
    return {
        "system": (pickle.dumps({b"data": Runs(path)}, 2), "posix.system"),
        "newer": (pickle.dumps({b"data": Runs(path)}, 4), "posix.system"),
        "eval": (global_opcode("builtins", "eval", call), "builtins.eval"),
        "old eval": (global_opcode("__builtin__", "eval", call), "eval"),
        "inst": (b"(U" + bytes([len(text)]) + text.encode() + inner[1:], "os.system"),
        "numpy's own": (global_opcode("numpy.testing._private.utils", "runstring", call), "runstring"),
        "dotted": (global_opcode("numpy", "f2py.os.system", call), "numpy.f2py"),
        "objects": (objects, ""),
        "subclass": (records, "recarray"),
        "persistent": (b"\x80\x02U\x01xQ.", "outside the file"),
        "codec": (global_opcode("_codecs", "encode", b"(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR."), "rot13"),
        "extension": (b"\x80\x02\x82\x01.", ""),
    }


@pytest.mark.parametrize("name", list(hostile(Path("x"))))
def test_a_hostile_pickle_does_not_run(tmp_path, name, one_sentence):
    target = tmp_path / "ran"
    content, said = hostile(target)[name]
    folder = write_python(tmp_path / "cifar", PARTS)
    (folder / "data_batch_3").write_bytes(content)
    text = one_sentence(import_folder, folder, tmp_path / "cifar.npz")
    assert "data_batch_3" in text
    assert said in text
    assert not target.exists()
    assert not (tmp_path / "cifar.npz").exists()


def test_the_control_would_run(tmp_path):
    """The same bytes, read by an ordinary unpickler, do what they say."""
    pickle.loads(hostile(tmp_path / "ran")["system"][0])
    assert (tmp_path / "ran").exists()


def test_damaged_and_other_files(tmp_path, one_sentence):
    folder = write_python(tmp_path / "cifar", PARTS)
    path = folder / "data_batch_2"
    whole = path.read_bytes()
    step = max(1, len(whole) // 40)
    for content in [b"", b"<html>", *(whole[:at] for at in range(1, len(whole) - 1, step))]:
        path.write_bytes(content)
        assert "data_batch_2" in one_sentence(import_folder, folder, tmp_path / "cifar.npz")
    contents = {
        "no data": pickle.dumps({b"labels": [1]}, 2),
        "not a dictionary of arrays": pickle.dumps([1, 2], 2),
        "uint8 data": pickle.dumps({b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]}, 2),
        "(N, 3072)": pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}, 2),
        "one whole number": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2),
    }
    for said, content in contents.items():
        path.write_bytes(content)
        assert said in one_sentence(import_folder, folder, tmp_path / "cifar.npz")
    path.unlink()
    assert "data_batch_2 is missing" in one_sentence(import_folder, folder, tmp_path / "cifar.npz")
    assert not (tmp_path / "cifar.npz").exists()


def test_every_byte_changed_is_read_or_refused(tmp_path):
    """A pickle is a program: whatever one byte of it becomes, there are arrays or a sentence."""
    whole = python2_pickle(np.zeros((1, 8), np.uint8), [1])
    path = tmp_path / "data_batch_1"
    for at in range(len(whole)):
        for flip in (0x01, 0x20, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            sentence = ""
            try:
                read_pickle(path)
            except ValueError as error:
                sentence = str(error)
            assert not sentence or str(path) in sentence


def test_other_folders(tmp_path, one_sentence):
    folder = write_folder(tmp_path / "pets", PARTS)
    assert "data=PATH" in one_sentence(import_folder, folder, tmp_path / "a.npz")
    assert "must end in .npz" in one_sentence(import_folder, folder, tmp_path / "a.npy")
