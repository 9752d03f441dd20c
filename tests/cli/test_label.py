"""`toughen label`: what it prints, what it writes, and its exit codes."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from conftest import tiny_data, tiny_split
from toughen.cli.app import app
from toughen.data import DATA, ImageData
from toughen.models import build
from toughen.storage import files

FUNCTION = """
import torch

def scorer():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
"""


def toughen(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def command(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    pool = tiny_split("pool", 80)
    pool.images[:5] = tiny_data().test.images[:5]
    data = ImageData("pool", pool, None, tiny_split("other", 4), tuple("abcd"))
    monkeypatch.setitem(DATA, "pool", lambda: data)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FUNCTION)
    return ["label", "pool", "--scorer", "mine.py:scorer", "--against", tiny, "--out", "extra"]


def test_a_set_is_made_and_made_again(command: list[object]):
    given = [*command, "--count", 8, "--count", 4, "--threshold", "10/255", "--probabilities"]
    result = toughen(*given)
    assert result.exit_code == 0, (result.stderr, result.exception)
    text = " ".join(result.stdout.split())
    assert "extra set from 80 images" in text
    assert "5 images (6.2 %) are within 10/255 of a test image and were left out, 5 of them exact copies" in text
    assert "scored 80 of 80 images" in text
    assert "what was done: extra/manifest.json" in text
    manifest = files.read_json(Path("extra/manifest.json"))
    assert [found["count"] for found in manifest["sets"]] == [4, 8]
    again = toughen(*given)
    assert again.exit_code == 0
    assert "5 images (6.2 %)" in " ".join(again.stdout.split())


def test_all_images_are_brought_to_a_size_for_a_scorer_that_needs_it(command: list[object]):
    Path("large.py").write_text(FUNCTION.replace("64", "3 * 16 * 16"))
    given = [*command, "--count", 8, "--threshold", "10/255", "--scorer", "large.py:scorer"]
    refused = toughen(*given)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: The scorer does not take images of 1x8x8: mat1 and mat2 shapes cannot")
    assert len(refused.stderr.splitlines()) == 1
    assert toughen(*given, "--size", 16).exit_code == 0
    assert files.read_json(Path("extra/manifest.json"))["pool"]["shape"] == [3, 16, 16]


def test_what_was_done_to_open_the_scorer_is_said(command: list[object]):
    torch.save(build("small_cnn", num_classes=4, in_channels=1, width=2).net.state_dict(), "small.pt")
    result = toughen(*command, "--count", 8, "--threshold", "10/255", "--scorer", "small.pt")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "small_cnn: 10 tensors from small.pt; images are not normalised" in result.stdout


BAD = {
    ("--count", "8", "--scorer", "small.pt"): "there is no file small.pt; check the path",
    ("--count", "3"): "at least 4",
    ("--count", "8", "--threshold", "far"): "'far' is not a number",
    ("--count", "8", "--threshold", "-1"): "like 2000/255",
    ("--count", "8", "--foreign"): "must give 5 an image",
    ("--count", "8", "--scorer", "nowhere"): "there is no nowhere; give a run folder, an exported model",
    ("--count", "8", "--labeller", "mine.py:other"): "has no 'other'",
    ("--count", "8", "--against", "tinny"): "did you mean 'tiny'",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_a_user_can_mend_is_one_sentence(command: list[object], arguments: tuple[str, ...]):
    result = toughen(*command, *arguments)
    assert result.exit_code == 2, (result.stderr, result.exception)
    assert BAD[arguments] in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
