import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import tiny_data, tiny_split
from models.pretrained.test_timm import Timm
from photographs import photograph
from toughen.data import DATA, ImageData, ResizeCrop, load, load_extra
from toughen.export import export
from toughen.models import build as build_network
from toughen.recipes.text import build, parse_yaml
from toughen.training import train
from toughen.workflows import ModelSource, label
from toughen.workflows.label import open_classifier, open_pool
from toughen.workflows.run_folder import open_run

RECIPE = """
data: tiny
model: {name: small_cnn, width: 2}
method: natural
threat: linf:0.1
batch_size: 32
steps: 4
selection: {suite: pgd-1, every: 4}
log_every: 4
"""


@pytest.fixture
def sources(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pool = tiny_split("pool", 60)
    pool.images[:6] = tiny_data().test.images[:6]
    data = ImageData("pool", pool, None, tiny_split("other", 4), tuple("abcd"))
    monkeypatch.setitem(DATA, "pool", lambda: data)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(1)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))\n\n\nnumber = 3\n"
    )
    return tiny


def test_a_run_scores_and_a_function_labels(sources: str):
    train(build(parse_yaml(RECIPE, "test")), Path("run"))
    manifest = label(
        "pool", "run", against=sources, counts=(8,), out=Path("out"), threshold=0.01, labeller="mine.py:make", soft=True
    )
    assert manifest["pool"]["exact_copies"] == manifest["pool"]["removed_within_threshold"] == 6
    assert manifest["request"]["classes"] == ["a", "b", "c", "d"]
    assert manifest["labelled_by"] == "labeller"
    held = {name: row["chosen"] for name, row in manifest["sets"][0]["classes"].items()}
    assert sum(held.values()) == manifest["sets"][0]["chosen"]

    # What was written is an extra set as training reads it: the pixels of the pool, and the labeller's probabilities.
    pool, extra = load("pool").train.images, load_extra("out", shape=(1, 8, 8), classes=("a", "b", "c", "d"))
    rows = pq.read_table("out/train-00000-of-00001.parquet").column("pool_index").to_pylist()
    assert torch.equal(extra.images, pool[rows])
    expected = open_classifier("mine.py:make", look).model.cpu()(pool[rows].float() / 255).softmax(1)
    torch.testing.assert_close(extra.labels, expected)


def test_a_pool_is_a_folder_of_images_without_labels(sources: str):
    pool = tiny_split("pool", 30).images
    for number, image in enumerate(pool):
        Path("loose").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(f"loose/{number:02d}.png")
    assert torch.equal(open_pool("loose", None).images, pool)
    npz = {"train_images": pool.numpy(), "train_labels": np.full(30, 9)}
    np.savez("pool.npz", **npz)
    assert torch.equal(open_pool("pool.npz", None).images, pool)
    made = [
        label(source, "mine.py:make", against=sources, counts=(4,), out=Path(f"out-{source}"), threshold=0.01)
        for source in ("loose", "pool.npz")
    ]
    assert made[0]["sets"] == made[1]["sets"]
    assert made[0]["files"] == made[1]["files"]


def test_classifiers_that_are_not_there_are_refused(sources: str):
    opened = open_classifier("mine.py:make", look)
    assert isinstance(opened.model, nn.Sequential)
    assert opened.view is None
    with pytest.raises(ValueError, match="gave int; it must be or return"):
        open_classifier("mine.py:number", look)
    with pytest.raises(
        ValueError, match="there is no nowhere; give a run folder, an exported model, a file of weights"
    ):
        open_classifier("nowhere", look)
    with pytest.raises(ValueError, match="is no run folder"):
        open_classifier(".", look)
    with pytest.raises(ValueError, match="has no 'absent'"):
        open_classifier("mine.py:absent", look)


def look(view: ResizeCrop | None) -> ImageData:
    return load("tiny", view)


def labelled(scorer: str, out: str, **given: Any) -> dict[str, Any]:
    settings = {"pool": "pool", "against": "tiny", "counts": (8,), "threshold": 0.01, **given}
    return label(scorer=ModelSource(scorer, size=settings.pop("size", None)), out=Path(out), **settings)


def test_an_export_and_a_file_of_weights_score_like_the_run(sources: str):
    train(build(parse_yaml(RECIPE, "test")), Path("run"))
    export(Path("run"), Path("exported"))
    run = open_run(Path("run"))
    torch.save(run.model.net.state_dict(), "small.pt")
    expected, said = labelled("run", "from-run"), []
    for number, what in enumerate(("exported", "exported/model.safetensors", "small.pt", "small_cnn=small.pt")):
        found = labelled(what, f"out-{number}", note=said.append)
        assert found["sets"] == expected["sets"], what
        assert found["files"] == expected["files"], what
    assert [text.partition(":")[0] for text in said] == ["small_cnn", "small_cnn"]
    # With one more output for images that show none of the classes.
    torch.save(build_network("small_cnn", num_classes=5, in_channels=1, width=2).net.state_dict(), "five.pt")
    assert labelled("five.pt", "foreign", foreign=True)["request"]["foreign"] is True
    with pytest.raises(ValueError, match=r"^five\.pt tells 5 classes apart and tiny has 4 "):
        labelled("five.pt", "refused")


def test_a_network_of_timm_scores_with_its_weights_and_normalisation(sources: str, monkeypatch: pytest.MonkeyPatch):
    grey = Timm()
    grey.get_pretrained_cfg = lambda name: SimpleNamespace(mean=(0.5,), std=(0.2,))
    monkeypatch.setitem(sys.modules, "timm", grey)
    said = []
    labelled("timm:resnet18", "out", note=said.append)
    assert ("resnet18", True) in grey.asked
    assert said == ["timm:resnet18: pretrained weights, normalised by mean [0.5] and std [0.2]"]


NAMED: dict[tuple[str, ...], str | None] = {
    ("a", "b", "c", "d"): None,
    (
        "a",
        "b",
        "dog",
        "c",
    ): "class 2 is 'c' for {} and 'dog' in named; give a classifier of the classes of named, in ",
    ("b", "a", "c", "d"): "class 0 is 'a' for {} and 'b' in named",
    # Not names.
    ("0", "1", "2", "3"): None,
}


@pytest.mark.parametrize("names", NAMED, ids="".join)
def test_classes_of_other_names_are_refused(sources: str, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]):
    train(build(parse_yaml(RECIPE, "test")), Path("run"))
    export(Path("run"), Path("exported"))
    monkeypatch.setitem(DATA, "named", lambda: replace(tiny_data(), name="named", classes=names))
    for what in ("run", "exported"):
        if says := NAMED[names]:
            for given in ({"scorer": what}, {"scorer": "mine.py:make", "labeller": what}):
                with pytest.raises(ValueError, match=f"^{re.escape(says.format(what))}"):
                    labelled(out="refused", against="named", **given)
            assert not Path("refused").exists()
        else:
            assert labelled(what, f"out-{what}", against="named")["request"]["classes"] == list(names)


def test_photographs_are_brought_to_the_size_that_is_given(sources: str):
    for number in range(12):
        Path("photographs").mkdir(exist_ok=True)
        photograph(number, 20 + number, 30).save(f"photographs/{number}.png")
    Path("mine.py").write_text(
        "from torch import nn\nscorer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))\n"
        "anything = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    for what, says in (
        ("anything", "or give size, like size=224, to crop and resize them."),
        ("scorer", "give size=N for another side"),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(says)}$"):
            labelled(f"mine.py:{what}", "out", pool="photographs", counts=(4,))
    made = labelled("mine.py:scorer", "sized", pool="photographs", counts=(4,), size=16)
    assert made["pool"]["shape"] == [3, 16, 16]
    # A run that was trained on images as they were gets what is asked for, one that says its size gets that.
    train(build(parse_yaml(RECIPE.replace("data: tiny", "data: {source: tiny, size: 16}"), "test")), Path("run"))
    made = labelled("run", "as-trained", pool="photographs", counts=(4,))
    assert made["pool"]["shape"] == [3, 16, 16]
    with pytest.raises(ValueError, match=r"^run was trained on images of side 16, and gets such; leave out size$"):
        labelled("run", "out", pool="photographs", counts=(4,), size=16)


def test_models_that_do_not_take_the_images_are_refused_before_the_work(sources: str):
    Path("sized.py").write_text(
        "from torch import nn\n\ndef linear(n):\n    return nn.Sequential(nn.Flatten(), nn.Linear(n, 4))\n\n"
        "large, colour = linear(32 * 32), nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    says = r" does not take images of 1x8x8: .*; it takes 1x32x32: give size=32$"
    with pytest.raises(ValueError, match="^The scorer" + says):
        labelled("sized.py:large", "out")
    with pytest.raises(ValueError, match="^The labeller" + says):
        labelled("mine.py:make", "out", labeller="sized.py:large")
    with pytest.raises(ValueError, match=r"takes images of 3 channels: give size=8, which makes all images RGB$"):
        labelled("sized.py:colour", "out")
    assert not list(Path("out").rglob("*.npz"))
    # The remedy, in the same folder.
    assert labelled("sized.py:colour", "out", size=24)["pool"]["shape"] == [3, 24, 24]
