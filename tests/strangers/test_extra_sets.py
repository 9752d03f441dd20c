"""Extra sets of strangers: pseudo-labelled images in a pickle."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from toughen.cli.app import app
from toughen.data import Split, load, load_extra
from toughen.data.files import hash_file
from toughen.data.sources.pseudo_labels import import_pickle

N = 7
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([3, 0, 2, 2, 1, 0, 3])
PLANES = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Any) -> str:
    """The one sentence of a command that ended with 2."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def write(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def carmon(data: object = IMAGES, labels: object = LABELS, **more: object) -> dict[Any, Any]:
    return {"data": data, "extrapolated_targets": labels, **more}


def as_bytes_keys(content: dict[str, Any]) -> dict[bytes, Any]:
    return {key.encode("latin1"): value for key, value in content.items()}


def by_other_numpy(content: bytes, protocol: int) -> bytes:
    """The same pickle as the other numpy writes it, whose core has another name; lengths of text are in front of it."""
    old, new = b"numpy.core.", b"numpy._core."
    swapped = (old, new) if old in content else (new, old)
    if protocol < 4:
        return content.replace(*swapped)
    for name in (b"multiarray", b"numeric"):
        was, now = swapped[0] + name, swapped[1] + name
        content = content.replace(b"\x8c" + bytes([len(was)]) + was, b"\x8c" + bytes([len(now)]) + now)
    # Without frames, whose lengths have changed too.
    assert content[2:3] == b"\x95"
    return content[:2] + content[11:]


FORMS: dict[str, tuple[object, object]] = {
    "as published": (IMAGES, LABELS),
    "rows of CIFAR": (PLANES.reshape(N, -1), LABELS),
    "channels first": (PLANES, LABELS),
    "not contiguous": (np.asfortranarray(IMAGES), LABELS),
    "labels as floats": (IMAGES, LABELS.astype(np.float32)),
    "labels as bytes": (IMAGES, LABELS.astype(np.uint8)),
    "labels big-endian": (IMAGES, LABELS.astype(">i4")),
    "labels in a column": (IMAGES, LABELS[:, None]),
    "labels in a list": (IMAGES, LABELS.tolist()),
    "numpy's numbers in a list": (IMAGES, list(LABELS)),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_is_imported_bit_for_bit(tmp_path: Path, form: str, protocol: int):
    data, labels = FORMS[form]
    path = write(tmp_path / "ti.pickle", carmon(data, labels, prediction_model="wrn", epoch=200), protocol)
    assert import_pickle(path, tmp_path / "new" / "ti.npz") == {"train": N}
    with np.load(tmp_path / "new" / "ti.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["image"], IMAGES)
        assert np.array_equal(stored["label"], LABELS)
        assert stored["label"].dtype == np.int64
        assert json.loads(str(stored["origin"])) == {
            "file": "ti.pickle",
            "sha256": hash_file(path),
            "labels": "extrapolated_targets",
            "images": N,
        }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("keys", [dict, as_bytes_keys])
def test_by_another_numpy_and_with_bytes_for_keys(tmp_path: Path, protocol: int, keys: Callable[..., object]):
    path = write(tmp_path / "ti.pickle", keys(carmon()), protocol)
    path.write_bytes(by_other_numpy(path.read_bytes(), protocol))
    import_pickle(path, tmp_path / "ti.npz")
    extra = load_extra(str(tmp_path / "ti.npz"), shape=(3, 32, 32), classes=4)
    assert isinstance(extra, Split)
    assert np.array_equal(extra.images.numpy(), PLANES)
    assert extra.labels.tolist() == LABELS.tolist()


def test_grey_images_and_probabilities_and_images_without_a_label(tmp_path: Path):
    soft = RNG.dirichlet(np.ones(4), N)
    import_pickle(write(tmp_path / "a.pkl", carmon(IMAGES[..., 0], soft)), tmp_path / "a.npz")
    extra = load_extra(str(tmp_path / "a.npz"), shape=(1, 32, 32), classes=4)
    assert np.array_equal(extra.images.numpy()[:, 0], IMAGES[..., 0])
    assert np.array_equal(extra.labels.numpy(), soft.astype(np.float32))
    none = np.where(np.arange(N) % 2, LABELS, -1)
    import_pickle(write(tmp_path / "b.pkl", carmon(IMAGES[..., 0].reshape(N, -1), none)), tmp_path / "b.npz")
    extra = load_extra(str(tmp_path / "b.npz"), shape=(1, 32, 32), classes=4)
    assert np.array_equal(extra.images.numpy()[:, 0], IMAGES[..., 0])
    assert extra.labels.tolist() == none.tolist()


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def hostile(path: Path) -> object:
    return carmon(Runs(path))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no labels": (lambda _: {"data": IMAGES}, "holds data, but pseudo-labelled images are data and extrapolated"),
    "no images": (lambda _: {"extrapolated_targets": LABELS}, "holds extrapolated_targets, but"),
    "nothing": (lambda _: {}, "holds nothing, but"),
    "a list": (lambda _: [IMAGES, LABELS], "holds a list, not a dictionary"),
    "one file of CIFAR": (lambda _: {b"data": PLANES.reshape(N, -1), b"labels": [0] * N, b"filenames": []}, "folder"),
    "floats": (lambda _: carmon(IMAGES / 255), "data in", ),
    "no array": (lambda _: carmon(IMAGES.tolist()), "is list, but images must be uint8"),
    "flat": (lambda _: carmon(IMAGES.reshape(N, -1)[:, 1:]), "of shape (7, 3071)"),
    "four channels": (lambda _: carmon(np.zeros((N, 32, 32, 4), np.uint8)), "of shape (7, 32, 32, 4)"),
    "no dimension": (lambda _: carmon(np.array(3, np.uint8)), "of shape ()"),
    "empty": (lambda _: carmon(IMAGES[:0], LABELS[:0]), "holds no images"),
    "too few labels": (lambda _: carmon(labels=LABELS[:3]), "7 images and 3 labels"),
    "half a class": (lambda _: carmon(labels=LABELS + 0.5), "Image 0 of"),
    "not a number": (lambda _: carmon(labels=np.where(LABELS == 2, np.nan, LABELS)), "Image 2 of"),
    "beyond all integers": (lambda _: carmon(labels=np.full(N, 2**63, np.uint64)), "Image 0 of"),
    "below -1": (lambda _: carmon(labels=LABELS - 3), "label -3"),
    "words": (lambda _: carmon(labels=["cat"] * N), "must be a class for each image"),
    "ragged": (lambda _: carmon(labels=[[1], [1, 2]]), "must be a class for each image"),
    "cube": (lambda _: carmon(labels=np.zeros((N, 2, 2))), "of shape (7, 2, 2)"),
    "hostile": (hostile, "system, which no array of numbers needs, and it was not run"),
    "objects": (lambda path: carmon(np.array([Runs(path)], object)), "was not run"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("protocol", [2, 5])
def test_what_cannot_be_imported_is_one_sentence_and_nothing_runs(tmp_path: Path, case: str, protocol: int):
    make, said = WRONG[case]
    path = write(tmp_path / "ti.pickle", make(tmp_path / "ran"), protocol)
    out = tmp_path / "new" / "ti.npz"
    text = refused(run("import", path, "--out", out))
    assert said in text
    assert str(path) in text
    assert not (tmp_path / "ran").exists()
    assert not out.parent.exists()


def test_the_control_would_run(tmp_path: Path):
    pickle.loads(write(tmp_path / "ti.pickle", hostile(tmp_path / "ran"), 2).read_bytes())
    assert (tmp_path / "ran").exists()


def test_cut_short_at_any_byte(tmp_path: Path):
    path = write(tmp_path / "ti.pickle", carmon(IMAGES[:1, :2, :2], LABELS[:1]))
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        assert str(path) in refused(run("import", path, "--out", tmp_path / "ti.npz"))
    assert not (tmp_path / "ti.npz").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("place", ["the file", "its folder"])
def test_wherever_it_is_met_the_command_is_named_that_then_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, place: str
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "carmon"
    folder.mkdir()
    path = write(folder / "ti.pickle", carmon(), protocol)
    given = str(path if place == "the file" else folder)
    with pytest.raises(ValueError, match="is a Python pickle") as caught:
        load(given)
    said = str(caught.value)
    with pytest.raises(ValueError, match="is a Python pickle") as caught:
        load_extra(given, shape=(3, 32, 32), classes=4)
    assert str(caught.value) == said
    train = ["train", "mnist-natural", "--out", tmp_path / "run"]
    assert said.split(";")[1] in refused(run(*train, f"data={given}"))
    assert not (tmp_path / "run").exists()
    words = said.split("`")[1].split()
    assert words[:2] == ["toughen", "import"]
    done = run(*words[1:])
    assert done.exit_code == 0, done.output
    assert "7 train images" in done.stdout
    assert done.stdout.splitlines()[-1] == "next: toughen train RECIPE data.extra=ti.npz"
    assert len(load_extra("ti.npz", shape=(3, 32, 32), classes=4)) == N
    # A second time nothing is overwritten.
    assert "exists, and is not overwritten" in refused(run(*words[1:]))


def test_a_folder_is_not_imported_in_a_circle(tmp_path: Path):
    path = write(tmp_path / "ti.pickle", carmon())
    assert refused(run("import", tmp_path, "--out", tmp_path / "ti.npz")).endswith(f"but a pickle; give {path}.")
    assert "There is no folder" in refused(run("import", tmp_path / "none.pickle", "--out", tmp_path / "ti.npz"))
    np.savez(tmp_path / "own.npz", image=IMAGES, label=LABELS)
    assert "a zip archive, not a whole pickle" in refused(
        run("import", tmp_path / "own.npz", "--out", tmp_path / "ti.npz")
    )
