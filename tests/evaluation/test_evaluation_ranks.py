"""Two processes that share an evaluation end with the table of one."""

import json
from pathlib import Path

import numpy as np
import pytest

from processes import run_ranks
from toughen.evaluation import Evaluation
from toughen.evaluation.resume import adversarial_examples
from toughen.outcomes import COLUMNS

SCRIPT = Path(__file__).with_name("ranks.py")
MANY = 51
SIZES = {"one": 1, "two": 5, "seven": 7, "odd": MANY}


def run(folder: Path, world: int) -> Path:
    run_ranks(SCRIPT, folder, world)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("ranks") / "one", 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("ranks") / "two", 2)


@pytest.mark.parametrize("name", [*SIZES, "float32", "again", "resumed"])
def test_the_table_is_the_same_to_the_last_bit_on_every_rank(name, one, two):
    alone = Evaluation.read(one / "rank-0" / name)
    assert set(alone.outcomes.index.tolist()) == set(range(SIZES.get(name, MANY)))
    for rank in range(2):
        shared = Evaluation.read(two / f"rank-{rank}" / name)
        for column in COLUMNS:
            np.testing.assert_array_equal(getattr(shared.outcomes, column), getattr(alone.outcomes, column))
        assert shared.identity == alone.identity
        assert {**shared.summary(), "seconds": 0} == {**alone.summary(), "seconds": 0}
    if name in ("odd", "float32"):
        assert 0 < alone.robust_accuracy < 1


@pytest.mark.parametrize("name", ["odd", "resumed"])
def test_the_folder_holds_the_same_bytes(name, one, two, saving):
    folders = [saving.contents(parent / name) for parent in (one, two)]
    for contents in folders:
        del contents["result.json"]
    assert folders[0] == folders[1]
    assert not saving.leftovers(two / name)
    table = Evaluation.read(two / name).outcomes
    broken = [(attack, part.index.tolist()) for attack, part in adversarial_examples(two / name).items()]
    rows = ~table.survived & (table.attack != "clean")
    assert broken == [
        (attack, table.index[rows & (table.attack == attack)].tolist())
        for attack in table.attacks
        if (rows & (table.attack == attack)).any()
    ]


def test_a_refusal_reaches_every_rank(two):
    for rank in range(2):
        finished, begun = json.loads((two / f"rank-{rank}" / "said.json").read_text())
        for sentence in (finished, begun):
            assert sentence.startswith("EV271")
            assert "another seed (0, given 1)" in sentence
