import io
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from toughen.data import Split
from toughen.data.pseudo_labelling import build
from toughen.data.pseudo_labelling import files as set_files
from toughen.data.pseudo_labelling.build import label
from toughen.data.pseudo_labelling.duplicates import near
from toughen.models.cost import counted
from toughen.noise import generator
from toughen.storage import files

CLASSES = ("dark", "mid", "bright")


class Brightness(nn.Module):
    """Three classes by mean brightness, and a fourth logit for images with much noise."""

    def __init__(self, outputs: int = 3, sharpness: float = 40.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, spread = x.mean((1, 2, 3)), x.flatten(1).std(1)
        logits = [-self.sharpness * (mean - level).abs() for level in (0.2, 0.5, 0.8)]
        return torch.stack([*logits, self.sharpness * (spread - 0.2)], 1)[:, : self.outputs]


def smooth(name: str, n: int) -> torch.Tensor:
    draw = generator("labelling", name)
    level = torch.randint(20, 236, (n, 1, 1, 1), generator=draw)
    return (level + torch.randint(-20, 20, (n, 3, 6, 6), generator=draw)).clamp(0, 255).to(torch.uint8)


def pool_and_test() -> tuple[Split, torch.Tensor]:
    pool, test = smooth("pool", 90), smooth("test", 20)
    pool[10:15] = test[3:8]  # copies
    pool[15, :, 0, 0] = 0
    pool[20:30] = torch.randint(0, 256, (10, 3, 6, 6), generator=generator("labelling", "noise"), dtype=torch.uint8)
    return Split(pool, torch.full((90,), 2)), test


def run(out: Path, **changes):
    pool, test = pool_and_test()
    given = {"test_images": test, "classes": CLASSES, "counts": (30, 12), "threshold": 0.05, "batch_size": 16}
    return label(pool, changes.pop("scorer", Brightness()), out=out, **{**given, **changes})


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several chunks, shards and row groups."""
    monkeypatch.setattr(build, "_CHUNK", 40)
    monkeypatch.setattr(set_files, "SHARD_ROWS", 13)
    monkeypatch.setattr(set_files, "_GROUP_BYTES", 5 * 108)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def table(out: Path) -> dict[str, list]:
    shards = sorted(out.glob("train-*.parquet"))
    assert [shard.name for shard in shards] == [
        f"train-{i:05d}-of-{len(shards):05d}.parquet" for i in range(len(shards))
    ]
    columns = [pq.read_table(shard).to_pydict() for shard in shards]
    return {name: list(itertools.chain(*(column[name] for column in columns))) for name in columns[0]}


def test_what_is_written_is_what_was_asked_for(tmp_path):
    pool, test = pool_and_test()
    told = []
    manifest = run(tmp_path / "out", progress=lambda *step: told.append(step))
    logits = Brightness()(pool.images.float() / 255).detach().double()
    p, predicted = logits.softmax(1).max(1)
    distance = near(pool, test).distance
    removed = set((distance <= 0.05).nonzero().squeeze(1).tolist())
    assert removed >= set(range(10, 15))
    rows = table(tmp_path / "out")
    for count in (12, 30):
        held = {i for i, s in zip(rows["pool_index"], rows["set"], strict=True) if s <= count}
        expected = set()
        for k in range(3):
            members = [i for i in range(90) if predicted[i] == k and i not in removed]
            expected |= set(sorted(members, key=lambda i: (-float(logits[i].softmax(0)[k]), i))[: count // 3])
        assert held == expected
    order = rows["pool_index"]
    assert rows["label"] == predicted[order].tolist()
    assert rows["score"] == pytest.approx(p[order].tolist(), rel=1e-6)
    assert rows["distance"] == pytest.approx(distance[order].tolist(), rel=1e-12)
    for i, image in zip(order, rows["image"], strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image["bytes"]))), pool.images[i].permute(1, 2, 0))
    left_out = pq.read_table(tmp_path / "out" / "duplicates.parquet").to_pydict()
    assert left_out["pool_index"] == sorted(removed)
    assert left_out["test_index"][:5] == [3, 4, 5, 6, 7]
    assert left_out["distance"][:5] == [0] * 5
    alike = pq.read_table(tmp_path / "out" / "perceptual.parquet").to_pydict()
    assert set(alike["pool_index"]) >= set(range(10, 15))
    assert not set(alike["pool_index"]) & set(range(20, 30))
    assert [removed >= {i} for i in alike["pool_index"]] == alike["removed"]
    assert [i in order for i in alike["pool_index"]] == alike["chosen"]
    assert manifest == files.read_json(tmp_path / "out" / "manifest.json")
    assert manifest["pool"]["removed_within_threshold"] == len(removed)
    assert manifest["pool"]["exact_copies"] == 5
    assert manifest["pool"]["candidates"] == 90 - len(removed)
    assert [(s["count"], s["chosen"]) for s in manifest["sets"]] == [(12, 12), (30, 30)]
    assert manifest["sets"][0]["classes"]["dark"]["chosen"] == 4
    assert manifest["files"]["train-00000-of-00003.parquet"]
    assert told == [
        *(("scored", n, 90) for n in (40, 80, 90)),
        *(("written", n, 30) for n in (13, 26, 30)),
    ]
    assert not (tmp_path / "out" / "scores").exists()


def test_the_hubs_own_reader_sees_images_and_classes(tmp_path):
    import datasets

    run(tmp_path / "out", labels="probabilities")
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"))
    assert list(read) == ["train"]
    assert len(read["train"]) == 30
    assert read["train"].features["label"].names == list(CLASSES)
    example = read["train"][0]
    assert example["image"].size == (6, 6)
    assert sum(example["probabilities"]) == pytest.approx(1)
    assert int(np.argmax(example["probabilities"])) == example["label"]


def test_foreign_images_are_out_with_a_class_for_them_and_in_without(tmp_path):
    with_class = run(tmp_path / "with", scorer=Brightness(4), foreign=True, counts=(60,), labels="probabilities")
    rows = table(tmp_path / "with")
    assert not set(rows["pool_index"]) & set(range(20, 30))
    assert with_class["pool"]["foreign"] == 10
    assert all(len(soft) == 3 and sum(soft) == pytest.approx(1) for soft in rows["probabilities"])
    run(tmp_path / "without", counts=(80,))
    assert set(table(tmp_path / "without")["pool_index"]) & set(range(20, 30))


def test_a_second_classifier_labels_and_a_short_class_is_said(tmp_path):
    class Other(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), 0.5 + 0 * x[:, 0, 0, 0], 0 * x[:, 0, 0, 0] - 1], 1)

    manifest = run(tmp_path / "out", labeller=Other(), labels="probabilities", counts=(84,))
    rows = table(tmp_path / "out")
    assert set(rows["label"]) == {0, 1}
    pool, _ = pool_and_test()
    expected = Other()(pool.images[rows["pool_index"]].float() / 255).softmax(1)
    assert np.array(rows["probabilities"]) == pytest.approx(expected.numpy(), abs=1e-6)
    by_scorer = Brightness()(pool.images[rows["pool_index"]].float() / 255).argmax(1)
    assert manifest["labeller_agrees"] == pytest.approx(np.mean(by_scorer.numpy() == rows["label"]))
    assert 0 < manifest["labeller_agrees"] < 1
    missing = manifest["sets"][0]["missing"]
    assert missing > 0
    assert len(rows["label"]) == 84 - missing
    assert sum(row.get("missing", 0) for row in manifest["sets"][0]["classes"].values()) == missing


def test_stopped_anywhere_the_same_call_ends_with_the_same_bytes(tmp_path, saving, monkeypatch):
    whole = {"counts": (12,), "labels": "probabilities", "labeller": Brightness(sharpness=3.0)}
    run(tmp_path / "whole", **whole)
    expected = contents(tmp_path / "whole")
    points: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "point", points.append)
        run(tmp_path / "counted", **whole)
    assert contents(tmp_path / "counted") == expected
    assert len(points) > 20
    for number in range(len(points)):
        out = tmp_path / f"stopped-{number}"
        child = os.fork()
        if child == 0:
            # Dead at once, as by SIGKILL: nothing is tidied up.
            files.point = saving.stop_at(number, lambda: os._exit(9))
            run(out, **whole)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        run(out, **whole)
        assert contents(out) == expected, points[number]


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_finished_chunks_are_not_scored_again(tmp_path, saving, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build, "choose", lambda *a, **k: saving.fail())
        with pytest.raises(saving.Fault):
            run(tmp_path / "out")
    scorer = Brightness()
    for _ in range(2):
        # Once for the first images, by which the scorer is known again.
        with counted(scorer) as passes:
            run(tmp_path / "out", scorer=scorer, batch_size=8)
        assert (passes.forwards, passes.example_forwards) == (1, 8)


def test_folders_that_hold_something_else_are_refused_untouched(tmp_path, one_sentence):
    run(tmp_path / "out")
    before = contents(tmp_path / "out")
    for changes, name in (
        ({"counts": (12,)}, "counts"),
        ({"threshold": 0.06}, "threshold"),
        ({"scorer": Brightness(sharpness=41.0)}, "scorer"),
        ({"labels": "probabilities"}, "labels"),
        ({"test_images": pool_and_test()[1][1:]}, "test"),
    ):
        assert f"another extra set ({name} differs)" in one_sentence(run, tmp_path / "out", **changes)
    assert contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "holds other files (thesis.txt)" in one_sentence(run, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with files.lock(tmp_path / "busy"), pytest.raises(files.Locked):
        run(tmp_path / "busy")


def test_models_and_pools_that_do_not_fit_are_refused(tmp_path, one_sentence):
    assert "must give 4 an image" in one_sentence(run, tmp_path / "a", foreign=True)
    assert "must give 3 an image" in one_sentence(run, tmp_path / "b", labeller=Brightness(4))
    assert "image 0 of the pool" in one_sentence(run, tmp_path / "c", scorer=Brightness(sharpness=float("nan")))
    assert "none is left to choose: 90 are within" in one_sentence(run, tmp_path / "d", threshold=100.0)
    assert "bring both to one shape" in one_sentence(run, tmp_path / "e", test_images=pool_and_test()[1][:, :, 1:])
    assert "at least 3" in one_sentence(run, tmp_path / "f", counts=(2,))
    assert not (tmp_path / "f").exists()
    # Nothing was scored, so the folder is not taken.
    assert run(tmp_path / "a")["sets"][0]["chosen"] == 12
