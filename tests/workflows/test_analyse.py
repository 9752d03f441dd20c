"""What a report draws of a run: every file against the analysis called by hand, kills, and other folders."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from cli.test_app import TINY, everything
from conftest import tiny_data
from toughen import recipes
from toughen.data import DATA, Split
from toughen.data.base import ImageData
from toughen.evaluation import EpsSweep, GradientMagnitude, LossSurface, StepSweep, WeaklyBounded, evaluate
from toughen.evaluation.analyses.image_grid import Pictures
from toughen.storage import files
from toughen.threat import Linf
from toughen.training import train
from toughen.workflows import ModelSource, analyse, analysis_kinds
from toughen.workflows.analysis_kinds import FILES
from toughen.workflows.run_folder import open_run

ADAPTIVE = """
data: tiny
model: {name: small_cnn, width: 2}
method: {name: instance_adaptive, attack: {name: pgd, steps: 2, step_size: 0.05}, gamma: 0.03}
threat: linf:0.1
batch_size: 32
steps: 3
selection: {suite: pgd-2, every: 3}
"""
ALL = [name for name in FILES if not name.startswith("radii")]


@pytest.fixture(name="make")
def _make(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)
    # The number of points is the tests' time.
    monkeypatch.setattr(analysis_kinds, "POINTS", 5)

    def make(text: str = TINY, name: str = "run", changes: tuple[str, ...] = ()) -> Path:
        Path("recipe.yaml").write_text(text)
        train(recipes.load("recipe.yaml", changes), Path(name))
        return Path(name)

    return make


def test_every_file_is_what_the_analysis_finds(make: Callable[..., Path]):
    run, seen = make(), []
    found = analyse(run, limit=10, progress=lambda *now: seen.append(now))
    assert found.folder == run / "analysis"
    assert (list(found.made), found.kept) == (ALL, ())
    assert {path.name for path in found.folder.iterdir()} == {
        *ALL,
        "identity.json",
        "clean_logits.safetensors",
        ".lock",
    }
    ends = [now for now in seen if now[1] == now[2]]
    sizes = {"surface": 1, "turns": 9, "pictures": 8}
    assert ends == [(name, *[sizes.get(name.partition("-")[0].partition(".")[0], 10)] * 2) for name in ALL]
    for name in ALL:
        shares = [done for of, done, _ in seen if of == name]
        assert shares == sorted(shares)

    model, test = open_run(run).model, tiny_data().test
    x, y = test.images[:10], test.labels[:10]
    sweep = EpsSweep.read(found.folder / "eps-sweep.json")
    assert sweep.radii.tolist() == pytest.approx([0.1 * k / 4 for k in range(9)], abs=1e-12)
    assert sweep.index.tolist() == list(range(10))
    for at in (4, 8):
        by_hand = evaluate(model, x, y, threat=Linf(sweep.radii[at]), suite="pgd-20", audit=False)
        assert sweep.accuracies[at] == by_hand.robust_accuracy
        assert sweep.settings[at] == by_hand.settings

    steps = StepSweep.read(found.folder / "step-sweep.json")
    assert (steps.threat, steps.steps.tolist()) == ("linf:0.1", [1, 2, 5, 10, 20, 50, 100])

    gradients = GradientMagnitude.read(found.folder / "gradients.json")
    at = (x.float() / 255).requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(at), y, reduction="sum"), at)
    assert gradients.norm == pytest.approx(grad.flatten(1).norm(dim=1).double().numpy(), rel=1e-5)

    for number, position in enumerate(range(36, 40)):
        surface = LossSurface.read(found.folder / f"surface-{number}.npz")
        image, label = test.images[position : position + 1], test.labels[position : position + 1]
        assert (surface.index.tolist(), surface.radius, surface.directions) == ([position], 0.1, "adversarial")
        loss = cross_entropy(model(image.float() / 255), label).item()
        assert surface.loss[0, 2, 2] == pytest.approx(loss, rel=1e-5)
        at = (image.float() / 255).requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(model(at), label), at)
        fgsm = cross_entropy(model(at + 0.1 * grad.sign()), label).item()
        assert surface.loss[0, 2, 4] == pytest.approx(fgsm, rel=1e-5)

    turned = WeaklyBounded.read(found.folder / "turns-into.npz")
    assert (turned.eps, turned.index.tolist()) == (30 / 255, list(range(31, 40)))

    last = Pictures.read(found.folder / "pictures.npz")
    assert (last.title, last.variants, last.classes) == ("The last 8 test images", ["linf:0.1"], ["a", "b", "c", "d"])
    assert last.index.tolist() == list(range(32, 40))
    assert np.array_equal(last.image, test.images[32:].numpy())
    moved = np.abs(last.adversarial[0].astype(int) - last.image)
    assert moved.max() == math.floor(0.1 * 255)
    assert last.prediction[0].tolist() == model(torch.tensor(last.adversarial[0]) / 255).argmax(1).tolist()


def test_killed_it_goes_on_to_the_same_bytes(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    run = make()
    whole = everything(analyse(run, limit=6, out=Path("whole")).folder)
    reached = []

    def kill(point: str) -> None:
        reached.append(point)
        if point == "before rename to surface-1.npz":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "point", kill)
        with pytest.raises(KeyboardInterrupt):
            analyse(run, limit=6)
    done = ALL[: ALL.index("surface-1.npz")]
    with monkeypatch.context() as patch:
        patch.setattr(analysis_kinds, "eps_sweep", None)
        found = analyse(run, limit=6)
    assert list(found.kept) == done
    assert list(found.made) == ALL[len(done) :]
    assert {path.name: data for path, data in everything(found.folder).items()} == {
        path.name: data for path, data in whole.items()
    }


def test_a_file_that_is_gone_or_rotted_comes_back_and_no_other_is_touched(make: Callable[..., Path]):
    folder = analyse(make(), limit=6, only=["gradients", "surface", "pictures"]).folder
    before = everything(folder)
    (folder / "gradients.json").unlink()
    rotten = bytearray((folder / "pictures.npz").read_bytes())
    for place in range(500, len(rotten) - 1500, 200):
        rotten[place] ^= 0xFF
    (folder / "pictures.npz").write_bytes(rotten)
    found = analyse("run", limit=6, only=["gradients", "surface-2", "pictures"])
    assert (found.made, found.kept) == (("gradients.json", "pictures.npz"), ("surface-2.npz",))
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limit": 7}, r"another number of images \(6, given 7\)"),
        ({"limit": None}, r"another number of images \(6, given 40\)"),
        ({"threat": "linf:8/255"}, r"another ball \(linf:0.1, given linf:8/255\)"),
        ({"seed": 1}, r"another seed \(0, given 1\)"),
        ({"weights": "weights"}, "another model"),
    ],
)
def test_a_folder_of_other_analyses_is_refused_and_left_alone(
    make: Callable[..., Path], change: dict[str, Any], says: str
):
    run = make(changes=("averages=[0.5]",))
    analyse(run, limit=6, only=["gradients"])
    before = everything(run)
    source = ModelSource(str(run), weights=change.pop("weights", None))
    with pytest.raises(ValueError, match=f"EV271 run/analysis holds analyses of {says}.* with out, or delete it"):
        analyse(source, **{"limit": 6, "only": ["gradients"], **change})
    assert everything(run) == before


def test_a_folder_with_other_files_is_refused(make: Callable[..., Path]):
    run = make()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"EV271 mine holds other files \(notes.txt\)"):
        analyse(run, out=Path("mine"))
    with pytest.raises(ValueError, match=r"EV271 mine/notes.txt is a file"):
        analyse(run, out=Path("mine/notes.txt"))
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_the_smallest_and_the_largest_radii(make: Callable[..., Path]):
    run = make(ADAPTIVE)
    (state,) = run.glob("checkpoints/*/method.safetensors")
    memory = load_file(state)["radius"].double()
    found = analyse(run, only=["radii"])
    assert found.made == ("radii-smallest.npz", "radii-largest.npz")
    model, training = open_run(run).model, tiny_data().train
    seen = sorted((radius, number) for number, radius in enumerate(memory.tolist()) if radius >= 0)
    # Validation images were held out, and not all others have had their turn.
    assert 8 < len(seen) <= 96
    ordered = {"smallest": seen, "largest": sorted(seen, key=lambda pair: (-pair[0], pair[1]))}
    for which, pairs in ordered.items():
        some = Pictures.read(found.folder / f"radii-{which}.npz")
        assert some.title == f"The 8 training images with the {which} radii"
        assert some.variants == ["linf:8/255", "linf:16/255", "own radius"]
        assert list(zip(some.radius.tolist(), some.index.tolist(), strict=True)) == pairs[:8]
        assert np.array_equal(some.image, training.images[some.index.tolist()].numpy())
        assert some.label.tolist() == training.labels[some.index.tolist()].tolist()
        moved = np.abs(some.adversarial.astype(int) - some.image).max(axis=(2, 3, 4))
        assert moved[0].tolist() == [8] * 8
        assert moved[1].tolist() == [16] * 8
        assert moved[2].tolist() == [math.floor(radius * 255 + 1e-5) for radius, _ in pairs[:8]]
        for prediction, images in zip(some.prediction, some.adversarial, strict=True):
            assert prediction.tolist() == model(torch.tensor(images) / 255).argmax(1).tolist()


def test_radii_of_a_run_that_keeps_none_and_of_other_images(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    run = make()
    with pytest.raises(ValueError, match=r"run keeps no radii of training images; leave radii out of only"):
        analyse(run, only=["pictures", "radii-largest"])
    assert not (run / "analysis").exists()
    adaptive = make(ADAPTIVE, "adaptive")
    data = tiny_data()
    changed = replace(data, train=Split(255 - data.train.images, data.train.labels))
    monkeypatch.setitem(DATA, "tiny", lambda: changed)
    with pytest.raises(ValueError, match="CK302 the training images of tiny have changed since adaptive was trained"):
        analyse(adaptive, limit=6)
    # The others are there.
    assert not analyse(adaptive, limit=6, only=[Path(name).stem for name in ALL]).made


def test_of_a_test_set_that_lies_by_class_images_are_spread(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    data = tiny_data()
    order = data.test.labels.argsort(stable=True)
    by_class = ImageData("tiny", data.train, None, data.test.take(order), data.classes)
    monkeypatch.setitem(DATA, "tiny", lambda: by_class)
    folder = analyse(make(), limit=4, only=["gradients", "surface", "turns-into", "pictures"]).folder
    assert GradientMagnitude.read(folder / "gradients.json").index.tolist() == [0, 10, 20, 30]
    assert [LossSurface.read(folder / f"surface-{i}.npz").index.tolist() for i in range(4)] == [[0], [10], [20], [30]]
    shown = Pictures.read(folder / "pictures.npz")
    assert shown.index.tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert shown.label.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shown.title == "8 test images spread over all, which lie by class"


def test_in_l2(make: Callable[..., Path]):
    run = make(ADAPTIVE.replace("linf:0.1", "l2:0.5").replace("step_size: 0.05", "step_size: 0.2"))
    folder = analyse(run, limit=4, only=["eps-sweep", "surface-3", "pictures", "radii"]).folder
    sweep = EpsSweep.read(folder / "eps-sweep.json")
    assert (sweep.norm, sweep.radii[-1]) == ("l2", 1.0)
    surface = LossSurface.read(folder / "surface-3.npz")
    assert np.linalg.norm(surface.radius * surface.second) == pytest.approx(0.5)
    assert Pictures.read(folder / "radii-largest.npz").variants == ["l2:0.5", "l2:1.0", "own radius"]


def test_a_very_small_test_set(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    data = tiny_data()
    monkeypatch.setitem(DATA, "tiny", lambda: replace(data, test=data.test.take(torch.tensor([3, 1]))))
    found = analyse(make(), only=["gradients", "surface", "turns-into", "pictures"])
    assert found.made == ("gradients.json", "surface-0.npz", "surface-1.npz", "turns-into.npz", "pictures.npz")
    assert LossSurface.read(found.folder / "surface-1.npz").index.tolist() == [1]
    assert Pictures.read(found.folder / "pictures.npz").title == "The last 2 test images"


def test_names_that_are_none(make: Callable[..., Path]):
    with pytest.raises(ValueError, match=r"'picture' is not a known analysis; allowed: eps-sweep, .* mean 'pictures'"):
        analyse(make(), only=["picture"])
