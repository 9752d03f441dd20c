"""Accuracy under corruptions, with a model that says whether an image is bright and corruptions that darken it."""

import copy
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from dark import FEW, LABELS, LEVELS, Bright, darker, grey, measured, stand
from processes import run_ranks
from toughen import corruptions
from toughen.corruptions import CORRUPTIONS, MAIN
from toughen.data.base import Split
from toughen.evaluation import evaluate, runner
from toughen.evaluation.corruption import evaluate as measuring
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import CorruptionResult
from toughen.evaluation.time_left import Status
from toughen.parallel import ranks
from toughen.storage import files as store
from toughen.threat import Linf
from toys import network


@pytest.fixture(autouse=True)
def _dark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "corrupt", darker)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for the clock and the lock."""
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[:5] != ".lock"}
    result = json.loads(files["result.json"])
    assert result.pop("seconds") > 0
    return files | {"result.json": json.dumps(result).encode()}


def test_every_number_is_the_one_counted_by_hand():
    found = measured(batch_size=5)
    total = {"15": 0, "19": 0}
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            right = sum(stand(level, name, severity) for level in LEVELS)
            assert found.accuracy(name, severity) == right / 12
            total["19"] += right
            total["15"] += right if name in MAIN else 0
        by_hand = sum(stand(level, name, severity) for severity in range(1, 6) for level in LEVELS)
        assert found.accuracy(name) == by_hand / 60
    assert found.clean_accuracy == 1
    assert found.mean(MAIN) == total["15"] / (75 * 12)
    assert found.mean(CORRUPTIONS) == total["19"] / (95 * 12)
    assert 0.3 < total["15"] / (75 * 12) < 0.9
    assert (found.n, found.classes, found.origin, found.constants) == (12, 2, "generated", "cifar")
    summary = found.summary()
    assert summary["mean_15"]["accuracy"] == total["15"] / (75 * 12)
    assert [row["corruption"] for row in summary["corruptions"]] == list(CORRUPTIONS)
    assert summary["corruptions"][9]["cells"][2]["correct"] == sum(stand(level, "fog", 3) for level in LEVELS)


def test_an_image_is_run_once_in_a_cell_and_once_as_it_is():
    model = Bright()
    measured(model, batch_size=5)
    # One image to see that it fits, then 96 times 5, 5 and 2.
    assert model._seen == [1, *[5, 5, 2] * 96]


def test_real_corruptions_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measuring, "corrupt", corruptions.corrupt)
    found = corruption_accuracy(Bright(), grey(), LABELS, corruptions=["brightness", "gaussian_noise"], seed=3)
    # Brightness adds to the value in HSV, which of grey is grey.
    for severity, added in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), start=1):
        right = sum((level > 127) == (min(255, level + 255 * added) > 128) for level in LEVELS)
        assert found.accuracy("brightness", severity) == right / 12
    noisy = corruptions.corrupt(grey(), "gaussian_noise", 2, seed=3)
    says = (noisy.float().mean((1, 2, 3)) > 127.5).long()
    row = found.prediction[found.corruptions.index("gaussian_noise"), 1]
    np.testing.assert_array_equal(row, says.numpy())


def test_the_batch_size_and_the_form_of_the_images_change_nothing(tmp_path: Path):
    tables = []
    for number, (images, size) in enumerate([(grey(), 1), (grey(), 250), (Split(grey(), LABELS), 7)]):
        corruption_accuracy(Bright(), images, LABELS, batch_size=size, folder=tmp_path / str(number), **FEW)
        tables.append(contents(tmp_path / str(number)))
    assert tables[0] == tables[1] == tables[2]


def test_what_is_written_is_read_and_follows_from_the_table(tmp_path: Path):
    found = measured(folder=tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.name[:5] != ".lock"}
    assert names == {"examples.parquet", "result.json", "clean_logits.safetensors"}
    read = CorruptionResult.read(tmp_path)
    assert read.summary() == found.summary() == json.loads((tmp_path / "result.json").read_text())
    np.testing.assert_array_equal(read.prediction, found.prediction)
    with pq.ParquetFile(tmp_path / "examples.parquet") as file:
        rows = file.read().to_pylist()
    assert len(rows) == 96 * 12
    assert [row["corruption"] for row in rows[:13]] == ["clean"] * 12 + ["gaussian_noise"]
    right = Counter((row["corruption"], row["severity"]) for row in rows if row["correct"])
    assert sum(right[name, s] for name in MAIN for s in range(1, 6)) / (75 * 12) == found.mean(MAIN)
    fog = [row for row in rows if (row["corruption"], row["severity"]) == ("fog", 4)]
    assert [row["index"] for row in fog] == list(range(12))
    assert [row["label"] for row in fog] == LABELS.tolist()
    assert [row["correct"] for row in fog] == [stand(level, "fog", 4) for level in LEVELS]
    changed = json.loads((tmp_path / "result.json").read_text())
    changed["mean_15"]["accuracy"] += 0.01
    (tmp_path / "result.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"does not follow from examples\.parquet"):
        CorruptionResult.read(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="is no result of the suite corruptions"):
        CorruptionResult.read(tmp_path)


def test_a_finished_folder_is_read_and_a_foreign_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured(folder=tmp_path, **FEW)
    before = contents(tmp_path)
    monkeypatch.setattr(measuring, "corrupt", None)
    measured(folder=tmp_path, **FEW)
    for change, said in [
        ({"model": Bright(100.0)}, "another model"),
        ({"seed": 1}, r"another seed \(0, given 1\)"),
        ({"constants": "imagenet"}, "other attacks, corruptions or settings"),
        ({"severities": (1,)}, "other attacks, corruptions or settings"),
        ({"corruptions": ("fog",)}, "other attacks, corruptions or settings"),
    ]:
        with pytest.raises(ValueError, match=f"EV271 .* {said}"):
            measured(folder=tmp_path, **FEW | change)
    with pytest.raises(ValueError, match=r"EV271 .* other images"):
        corruption_accuracy(Bright(), grey(), 1 - LABELS, folder=tmp_path, **FEW)
    with pytest.raises(ValueError, match="EV271"):
        evaluate(Bright(), grey(), LABELS, threat=Linf(0.1), suite="pgd-1", audit=False, folder=tmp_path)
    assert contents(tmp_path) == before
    evaluate(Bright(), grey(), LABELS, threat=Linf(0.1), suite="pgd-1", audit=False, folder=tmp_path / "attacks")
    with pytest.raises(ValueError, match="EV271"):
        measured(folder=tmp_path / "attacks", **FEW)


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: Any):
    measured(folder=tmp_path / "whole", **FEW)
    expected, stopped = contents(tmp_path / "whole"), 0
    done: Counter[tuple[str, int]] = Counter()

    def counting(images: Tensor, name: str, severity: int, **given: Any) -> Tensor:
        done[name, severity] += 1
        return darker(images, name, severity, **given)

    monkeypatch.setattr(measuring, "corrupt", counting)
    for number in range(0, 500, 3):
        done.clear()
        folder = tmp_path / str(number)
        monkeypatch.setattr(store, "point", saving.stop_at(number, saving.fail))
        try:
            measured(folder=folder, **FEW)
        except saving.Fault:
            stopped += 1
        else:
            break
        monkeypatch.setattr(store, "point", lambda _: None)
        measured(folder=folder, **FEW)
        # A cell is done twice only where the first time was not yet written.
        assert len(done) == 4
        assert sum(done.values()) <= 5
        assert contents(folder) == expected
        assert not saving.leftovers(folder)
    assert stopped > 10


def test_a_unit_whose_file_rotted_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured(folder=tmp_path / "whole", **FEW)

    def until_fog(images: Tensor, name: str, severity: int, **given: Any) -> Tensor:
        if (name, severity) == ("fog", 5):
            raise KeyboardInterrupt
        return darker(images, name, severity, **given)

    monkeypatch.setattr(measuring, "corrupt", until_fog)
    with pytest.raises(KeyboardInterrupt):
        measured(folder=tmp_path / "cut", **FEW)
    units = tmp_path / "cut" / "units"
    # The stages in their order: clean, snow at 1 and 5, fog at 1 and 5.
    changed = bytearray((units / "002-00000.parquet").read_bytes())
    changed[len(changed) // 2] ^= 1
    (units / "002-00000.parquet").write_bytes(changed)
    (units / "003-00000.json").write_text("{")
    monkeypatch.setattr(measuring, "corrupt", darker)
    measured(folder=tmp_path / "cut", **FEW)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_two_ranks_do_what_one_does(tmp_path: Path):
    run_ranks(Path(__file__), tmp_path / "two", 2)
    measured(folder=tmp_path / "one", **FEW)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    said = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    # Half of the 12 images in each of the four cells.
    assert [summary["made"] for summary in said] == [4 * 6, 4 * 6]
    whole = json.loads((tmp_path / "one" / "result.json").read_text())
    assert all(summary["mean"] == whole["corruptions"][1]["accuracy"] for summary in said)


def test_the_model_and_the_generator_are_left_as_found():
    model, x = network().train(), torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    model[0].weight.requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state, y = torch.get_rng_state(), torch.tensor([0, 1, 2, 3, 4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "corrupt", corruptions.corrupt)
        corruption_accuracy(model, x, y, corruptions=["gaussian_noise", "fog"], severities=[5])
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, *[True] * 5]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_tells_of_every_unit(monkeypatch: pytest.MonkeyPatch):
    seen: list[Status] = []
    monkeypatch.setattr(runner, "CHUNK_VALUES", 8 * 3 * 8 * 8)
    measured(batch_size=4, progress=seen.append, **FEW)
    assert [(now.attack, now.done, now.attempted, now.number, now.total) for now in seen[:3]] == [
        ("clean", 8, 12, 1, 5),
        ("clean", 12, 12, 1, 5),
        ("snow-1", 8, 12, 2, 5),
    ]
    assert len(seen) == 10
    # Of the cell alone, whatever the images became in others.
    assert seen[-2].accuracy == sum(stand(level, "fog", 5) for level in LEVELS[:8]) / 8
    assert seen[-1].accuracy == sum(stand(level, "fog", 5) for level in LEVELS) / 12
    # A pass of each image for each cell that is left; at the end nothing is.
    assert all(now.seconds_left for now in seen[:-1])
    assert seen[-1].seconds_left == 0


@pytest.mark.parametrize(("most", "said"), [(3, "continued with 3"), (0, "EV242")])
def test_out_of_memory_fewer_images_are_taken_in_a_pass(tmp_path: Path, most: int, said: str):
    class Small(Bright):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > max(most, 1) or (not most and len(self._seen) > 40):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(x)

    whole = measured(folder=tmp_path / "whole", **FEW)
    if not most:
        with pytest.raises(
            ValueError, match=rf"{said} Out of memory, .*: give a smaller model or more memory; finished"
        ):
            measured(Small(), batch_size=6, folder=tmp_path / "cut", **FEW)
        assert list((tmp_path / "cut" / "units").glob("*.parquet"))
        return
    found = measured(Small(), batch_size=6, **FEW)
    assert [note for note in found.notes if said in note and note.startswith("EV241 Out of memory with 6 ")]
    np.testing.assert_array_equal(found.prediction, whole.prediction)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": grey().float() / 255}, "must be uint8"),
        ({"images": grey()[:5]}, r"of shape \(12,\) for 5 images"),
        ({"images": grey()[:0], "labels": LABELS[:0]}, "no images"),
        ({"labels": LABELS + 1}, "classes 0 to 1"),
        ({"corruptions": ["fogg"]}, "did you mean 'fog'"),
        ({"corruptions": ["fog", "fog"]}, "each once"),
        ({"corruptions": []}, "at least one"),
        ({"severities": [0]}, "it must be 1, 2, 3, 4 or 5"),
        ({"severities": [True]}, "it must be 1, 2, 3, 4 or 5"),
        ({"constants": "tiny"}, "allowed: cifar, imagenet"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": nn.Flatten(0)}, "it must return logits"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], said: str):
    given = {"model": Bright(), "images": grey(), "labels": LABELS, **change}
    with pytest.raises(ValueError, match=said):
        corruption_accuracy(given.pop("model"), given.pop("images"), given.pop("labels"), **given)


def test_infinite_logits_are_no_result(tmp_path: Path):
    class Broken(Bright):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (x.mean((1, 2, 3)) - 193 / 255)[:, None].abs().gt(1e-3)

    with pytest.raises(ValueError, match=r"EV203 .* under attack 'snow-5'"):
        measured(Broken(), folder=tmp_path, corruptions=["snow"])


def one_rank(folder: Path) -> None:
    """Part of `test_two_ranks_do_what_one_does`."""
    made: list[int] = []

    def noted(images: Tensor, name: str, severity: int, **given: Any) -> Tensor:
        made.append(len(images))
        return darker(images, name, severity, **given)

    measuring.corrupt = noted
    found = measured(folder=folder, shared=True, **FEW)
    said = {"made": sum(made), "mean": found.accuracy("fog")}
    (folder.parent / f"rank-{ranks.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.group(torch.device("cpu")):
        one_rank(Path(sys.argv[1]))
