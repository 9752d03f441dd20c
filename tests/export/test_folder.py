"""The exported folder: what it holds, that it loads to the same bits, and that it is whole or not there."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.conftest import CLASSES, contents, named_data
from toughen import models, recipes
from toughen.export import export, facts, folder
from toughen.models.exported import WEIGHTS, check_fits, load_model, read_config, to_bytes
from toughen.models.hashes import hash_model
from toughen.recipes.text import build
from toughen.storage import files as store
from toughen.workflows.run_folder import open_run


@pytest.mark.parametrize(
    ("checkpoint", "weights", "group"),
    [
        ("best", None, "best-average-0.9"),
        ("last", None, "average-0.9"),
        ("best", "weights", "best-weights"),
        ("last", "weights", "weights"),
    ],
)
def test_an_export_gives_the_bits_of_the_run(
    bare: Path, tmp_path: Path, checkpoint: str, weights: str | None, group: str
):
    made = export(bare, tmp_path / "out", checkpoint=checkpoint, weights=weights)
    assert set(made.files) == {"README.md", "config.json", "model.safetensors", "recipe.yaml"}
    assert made.files == {name: len(data) for name, data in contents(tmp_path / "out").items()}
    source = bare / "checkpoints" / (bare / "checkpoints/LATEST").read_text().strip() / f"{group}.safetensors"
    config = read_config(tmp_path / "out")
    assert config["checkpoint_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (config["weights"], config["threat"], config["image_shape"]) == (group, "linf:24/255", [1, 16, 16])

    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = load_model(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)
    stored = load_file(source)
    assert model.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert {"normalize.mean", "normalize.std"} <= stored.keys()
    assert not any(module.training for module in model.modules())
    assert vars(model)["classes"] == CLASSES
    original = open_run(bare, checkpoint=checkpoint, weights=weights).model.cpu()
    images = named_data().test.images.float() / 255
    with torch.no_grad():
        assert torch.equal(model(images), original(images))
        assert torch.equal(load_model(tmp_path / "out" / WEIGHTS)(images), model(images))
    # So an evaluation of the folder is one of the run's own weights.
    assert hash_model(model) == hash_model(original)


def test_the_exported_recipe_starts_the_same_run(bare: Path, tmp_path: Path):
    export(bare, tmp_path / "out")
    assert recipes.load(str(tmp_path / "out" / "recipe.yaml")) == recipes.load(str(bare / "recipe.yaml"))


def test_the_place_of_local_data_stays_at_home(bare: Path, tmp_path: Path):
    known = facts.collect_facts(bare, checkpoint="best", weights=None)
    elsewhere = build(
        {
            **known.run.recipe.model_dump(mode="json"),
            "data": str(tmp_path),
        }
    )
    assert elsewhere.data.source == str(tmp_path)
    text = dataclasses.replace(known, run=dataclasses.replace(known.run, recipe=elsewhere)).recipe
    assert str(tmp_path) not in text
    assert text.startswith("# Folders and files of another machine")
    (tmp_path / "again.yaml").write_text(text)
    told = recipes.differences(recipes.load(str(tmp_path / "again.yaml")), elsewhere)
    assert told == [f"data.source: named there, {tmp_path} here"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("small_cnn", {"per_image": True, "width": 2}),
        ("small_cnn", {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1 / 3), "width": 2}),
        ("wrn-10-1", {"activation": "silu"}),
        ("preact_resnet18", {}),
    ],
)
def test_networks_and_normalisations_come_back(tmp_path: Path, name: str, given: dict):
    torch.manual_seed(0)
    model = models.build(name, num_classes=3, **given).eval()
    options = {key: value for key, value in given.items() if key in ("width", "activation")}
    from toughen.models.exported import FORMAT, normalization

    config = {
        "format": FORMAT,
        "architecture": {"name": name, "options": options},
        "num_classes": 3,
        "in_channels": 3,
        "classes": ["a", "b", "c"],
        "normalization": normalization(model),
    }
    data = to_bytes(model, config)
    assert data == to_bytes(model, config)
    (tmp_path / "any.safetensors").write_bytes(data)
    again = load_model(tmp_path / "any.safetensors")
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert type(again.normalize) is type(model.normalize)


def test_a_second_export_gives_the_same_bytes_and_replaces_the_first(bare: Path, tmp_path: Path):
    export(bare, tmp_path / "out")
    first = contents(tmp_path / "out")
    export(bare, tmp_path / "out")
    assert contents(tmp_path / "out") == first
    export(bare, tmp_path / "out", checkpoint="last", licence="mit")
    assert contents(tmp_path / "out") != first
    export(bare, tmp_path / "out")
    assert contents(tmp_path / "out") == first
    (tmp_path / "empty").mkdir()
    export(bare, tmp_path / "empty")
    assert contents(tmp_path / "empty") == first
    assert {path.name for path in tmp_path.iterdir()} == {"out", "empty"}


def test_what_others_put_there_is_refused_and_left_alone(bare: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")
    (tmp_path / "file").write_text("a file")
    export(bare, tmp_path / "edited")
    (tmp_path / "edited" / "README.md").write_text("written by hand")
    export(bare, tmp_path / "joined")
    (tmp_path / "joined" / "photo.png").write_bytes(b"png")
    export(bare, tmp_path / "named")
    config = tmp_path / "named" / "config.json"
    config.write_text(config.read_text().replace('"a|b"', '"a or b"'))
    before = contents(tmp_path)
    for name, said in {
        "mine": "holds other things, such as thesis.tex; give another out",
        "file": "is a file; give a folder",
        "edited": "README.md is not as toughen export wrote it",
        "joined": "photo.png is not as toughen export wrote it",
        "named": "says something else on classes",
    }.items():
        with pytest.raises(ValueError, match=said):
            export(bare, tmp_path / name)
    with pytest.raises(ValueError, match="holds other things"):
        export(bare, bare)
    assert contents(tmp_path) == before


def test_a_failure_at_any_moment_leaves_the_old_export_or_the_new_one(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving
):
    export(bare, tmp_path / "old")
    export(bare, tmp_path / "new", licence="mit")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    number, ended = 0, False
    while not ended:
        for name, before in {"fresh": {}, "old": old}.items():
            monkeypatch.setattr(store, "point", saving.stop_at(number, saving.fail))
            try:
                export(bare, tmp_path / name, licence="mit")
            except saving.Fault:
                ended = False
            else:
                ended = True
            found = contents(tmp_path / name) if (tmp_path / name).exists() else {}
            assert found in ((new,) if ended else (before, new))
            # At most the place itself, where the fault fell before it was claimed.
            assert set(contents(tmp_path / f".export-{name}")) <= {".lock", ".lock-owner"}
            put_back(tmp_path / name, before)
        number += 1
    assert 5 < number < 200


def put_back(folder: Path, files: dict[str, bytes]) -> None:
    store.delete(folder)
    for name, data in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("broken", ["card", "to_bytes", "_read_back"])
def test_an_error_in_the_middle_leaves_nothing(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
):
    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, broken, full)
    with pytest.raises(OSError, match="No space left"):
        export(bare, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_put_right(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    export(bare, tmp_path / "out")
    whole = contents(tmp_path / "out")
    place = tmp_path / ".export-out"
    (place / "new").mkdir(parents=True)
    (place / "new" / "half").write_text("half")
    os.rename(tmp_path / "out", place / "former")
    monkeypatch.setattr(folder, "card", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(bare, tmp_path / "out")
    assert contents(tmp_path) == {f"out/{name}": data for name, data in whole.items()}


def test_damage_is_named(bare: Path, tmp_path: Path):
    export(bare, tmp_path / "out")
    path = tmp_path / "out" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(store.Damaged, match=r"hash mismatch in model\.safetensors"):
        load_model(tmp_path / "out")
    path.write_bytes(data[:40])
    with pytest.raises(store.Damaged, match=r"model\.safetensors"):
        load_model(tmp_path / "out")
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="does not say how to build its model"):
        load_model(tmp_path / "out")
    with pytest.raises(ValueError, match="holds no exported model"):
        load_model(tmp_path)


def test_a_file_that_does_not_fit_is_refused_in_a_sentence(bare: Path, tmp_path: Path):
    export(bare, tmp_path / "out")
    model, config = load_model(tmp_path / "out"), read_config(tmp_path / "out")
    path = tmp_path / "other.safetensors"
    cases = {
        "has format 2, this toughen reads format 1": {"format": 2},
        "is not a known model": {"architecture": {"name": "os.system", "options": {}}},
        "has no option 'depth'": {"architecture": {"name": "small_cnn", "options": {"depth": 3}}},
        "does not fit its network small_cnn": {"architecture": {"name": "small_cnn", "options": {"width": 3}}},
        "does not say how to build": {"normalization": "none"},
    }
    for said, change in cases.items():
        path.write_bytes(to_bytes(model, {**config, **change}))
        with pytest.raises(ValueError, match=said):
            load_model(path)


def test_data_that_do_not_fit_are_refused(bare: Path, tmp_path: Path):
    export(bare, tmp_path / "out")
    config = read_config(tmp_path / "out")
    check_fits(config, "named", CLASSES, (1, 8, 8))
    check_fits(config, "numbers", ("0", "1", "2", "3"), (1, 28, 28))
    with pytest.raises(ValueError, match="tells 4 classes apart and ten has 10"):
        check_fits(config, "ten", tuple("0123456789"), (1, 8, 8))
    with pytest.raises(ValueError, match="images of 1 channels and those of rgb have 3"):
        check_fits(config, "rgb", CLASSES, (3, 8, 8))
    with pytest.raises(ValueError, match="class 0 is 'Ölkanne' for the model and '猫' in turned"):
        check_fits(config, "turned", (CLASSES[1], CLASSES[0], *CLASSES[2:]), (1, 8, 8))


def named(*classes: str) -> dict[str, Any]:
    return {"num_classes": len(classes), "in_channels": 3, "classes": list(classes)}


def test_other_classes_are_refused_by_the_first_pair_that_differs():
    def fits(theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
        check_fits(named(*theirs), "photos", ours, (3, 8, 8))

    with pytest.raises(
        ValueError, match=r"^class 1 is 'b' for the model and 'big cat' in photos; give data with the m"
    ):
        fits(("a", "b", "c"), ("a", "big cat", "vögel"))
    with pytest.raises(ValueError, match=r"^class 1 is 'dog' for the model and 'cat' in photos; bring the data's cl"):
        fits(("fog", "dog", "cat"), ("fog", "cat", "dog"))
    with pytest.raises(ValueError, match=r"^class 2 is '2' for the model and '10' in photos; bring the data's classes"):
        fits(tuple(map(str, range(11))), tuple(sorted(map(str, range(11)))))
    with pytest.raises(ValueError, match=r"^class 0 is 'c#' for the model and 'c' in photos; bring"):
        fits(("c#", "c"), ("c", "c#"))
    with pytest.raises(ValueError, match="class 2 is '2' for the model and '7' in photos"):
        # Numbers that are not 0 to K - 1 are names.
        fits(("a", "b", "2"), ("A", "B", "7"))
    for ours in (("0", "1", "2"), ("Big_Cat", "VO\u0308GEL", "c++"), ("big cat", "vögel", "c++")):
        fits(("big cat", "vögel", "c++"), ours)
        fits(ours, ("big cat", "vögel", "c++"))
    with pytest.raises(ValueError, match="class 2 is"):
        fits(("a", "b", "!!"), ("a", "b", "??"))


def test_a_wish_that_cannot_be_met_is_refused_before_any_work(bare: Path, tmp_path: Path):
    wishes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"formats": ("pickle",)}, "allowed: safetensors, onnx, robustbench"),
        ({"licence": "do what\nyou like"}, "is no identifier of a licence"),
        ({"checkpoint": "newest"}, "it must be best or last"),
        ({"weights": "average-0.5"}, "has no weights 'average-0.5'"),
        ({"formats": ("robustbench",)}, "has no evaluation of best-average-0.9 by AutoAttack in linf:24/255"),
    )
    for given, said in wishes:
        with pytest.raises(ValueError, match=said):
            export(bare, tmp_path / "out", **given)
    with pytest.raises(ValueError, match="is no run folder"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
