from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import tiny_data, tiny_split
from toughen.data import DATA, ImageData, load, load_extra
from toughen.recipes.text import build, parse_yaml
from toughen.training import train
from toughen.training.labelling import label_sources, open_classifier, open_pool

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
    manifest = label_sources(
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
    expected = open_classifier("mine.py:make")[0].cpu()(pool[rows].float() / 255).softmax(1)
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
        label_sources(source, "mine.py:make", against=sources, counts=(4,), out=Path(f"out-{source}"), threshold=0.01)
        for source in ("loose", "pool.npz")
    ]
    assert made[0]["sets"] == made[1]["sets"]
    assert made[0]["files"] == made[1]["files"]


def test_classifiers_that_are_not_there_are_refused(sources: str):
    model, view = open_classifier("mine.py:make")
    assert isinstance(model, nn.Sequential)
    assert view is None
    with pytest.raises(ValueError, match="gave int; it must be or return"):
        open_classifier("mine.py:number")
    with pytest.raises(ValueError, match="no run folder"):
        open_classifier("nowhere")
    with pytest.raises(ValueError, match="has no 'absent'"):
        open_classifier("mine.py:absent")
