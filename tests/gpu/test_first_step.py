"""What a run tries before its first batch, on a pretended GPU: whether it compiles, and whether the memory suffices."""

from pathlib import Path

import pytest
import torch

import pretended
from conftest import tiny_data
from tiny_runs import Said, command, is_one_sentence, tiny_recipe
from toughen.data import DATA
from toughen.training import acceleration, train


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "tiny", tiny_data)


def test_by_rule_a_run_is_compiled_unless_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As here, where there is no Triton: it goes on, and with the same steps as if it had not been tried."""
    monkeypatch.setattr(acceleration, "WORTH_COMPILING", 1)
    said, recipe = Said(), tiny_recipe(device="cuda", steps=12, precision="fp32")
    summary = train(recipe, tmp_path / "tried", display=said)
    assert not summary["ways"]["compiled"]
    assert [note for note in said.notes if note.startswith("the network cannot be compiled here (")]
    monkeypatch.setattr(acceleration, "WORTH_COMPILING", 1000)
    assert train(recipe, tmp_path / "plain")["ways"] == summary["ways"]
    one, other = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("tried", "plain"))
    assert one == other


def test_what_a_device_draws_is_as_it_was(tmp_path: Path) -> None:
    torch.cuda.manual_seed(5)
    before, host = torch.cuda.get_rng_state("cuda:0"), torch.get_rng_state()
    train(tiny_recipe(device="cuda:0", steps=3, fast="off"), tmp_path / "run")
    assert torch.equal(torch.cuda.get_rng_state("cuda:0"), before)
    assert torch.equal(torch.get_rng_state(), host)


def test_memory_that_ends_on_a_gpu_is_a_sentence(tmp_path: Path) -> None:
    recipe = tiny_recipe(device="cuda:0", steps=12, batch_size=120)
    with pretended.limit(200_000):
        code, sentence = command(recipe, tmp_path / "run")
    assert code == 2
    assert is_one_sentence(sentence)
    assert sentence.startswith("error: out of memory on cuda:0 (")
    assert "micro_batch=60" in sentence
    assert command(recipe, tmp_path / "run") == (0, "")
