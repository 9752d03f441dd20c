import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import tiny_split
from toughen.data import DATA, ImageData
from toughen.evaluation import Evaluation
from toughen.recipes.text import build
from toughen.training import train
from toughen.workflows import EvaluationSettings, ModelSource, evaluate

CLASSES = ("Ölkanne", "猫", "a|b", "<i>four</i>")

RECIPE = {
    "name": "small *one*",
    "data": "named",
    "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
    "normalize": "data",
    "method": {"name": "free", "replays": 3},
    "threat": "linf:24/255",
    "batch_size": 32,
    "steps": 24,
    "optimizer": {"lr": 0.05},
    "averages": [0.9],
    "selection": {"suite": "pgd-2", "every": 12},
}


def named_data() -> ImageData:
    """The tiny data set, 16 x 16, under names that need care."""
    return ImageData("named", tiny_split("train", 150, side=16), None, tiny_split("test", 40, side=16), CLASSES)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nobody has evaluated; do not write into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "named", named_data)
        folder = tmp_path_factory.mktemp("bare") / "run"
        train(build(RECIPE), folder)
        yield folder


@pytest.fixture(scope="module")
def run(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with evaluations, all weak: three of its usual weights, one of others; do not write into it."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(bare, folder)
    evaluate(folder, "pgd-10")
    evaluate(folder, EvaluationSettings("pgd-20", limit=20, threat="linf:0.3"))
    evaluate(folder, EvaluationSettings("pgd-20", limit=30))
    evaluate(ModelSource(str(folder), checkpoint="last", weights="weights"), "pgd-10")
    for place in (folder / "evaluation").iterdir():
        # What an audit says of so small a network is not what is tested here.
        found = Evaluation.read(place)
        assert found.audit is not None
        dataclasses.replace(found, audit=dataclasses.replace(found.audit, findings=())).write(place)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
