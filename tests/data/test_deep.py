"""Images of more than 8 bits: 16-bit grey keeps its brightness, and floats are refused by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toughen.data import ResizeCrop, load

VIEW = ResizeCrop(6, resize=8)
LEVELS = np.array([0, 1, 128, 129, 257, 385, 386, 32767, 32896, 65406, 65407, 65535], np.uint16)


def folder_of(tmp_path: Path, array: np.ndarray, ending: str) -> Path:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / "pets" / part / name / f"1.{ending}")
    return tmp_path / "pets"


@pytest.mark.parametrize("level", LEVELS.tolist())
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_level_of_16_bits_is_the_nearest_of_8(tmp_path, level, ending):
    data = load(str(folder_of(tmp_path, np.full((9, 12), level, np.uint16), ending)), VIEW)
    expected = int(np.round(level / 257))
    assert (data.test.images == expected).all()
    assert (
        VIEW.random(Image.fromarray(np.full((9, 12), level, np.uint16)), np.random.default_rng(0)) == expected
    ).all()


def test_all_levels_and_big_endian_files(tmp_path):
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = np.round(levels / 257).astype(np.uint8)
    little = Image.fromarray(levels)
    big = Image.frombytes("I;16B", (256, 256), levels.astype(">u2").tobytes())
    for image in (little, big):
        assert image.mode.startswith("I;16")
        assert np.array_equal(ResizeCrop(256, resize=256).centre(image), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((9, 12), 0.5, np.float32), "is of floats (mode F)"),
        (np.full((9, 12), 70000, np.int32), "is of whole numbers of 32 bits (mode I)"),
    ],
)
@pytest.mark.parametrize("view", [VIEW, None])
def test_without_a_known_white_they_are_refused_by_name(tmp_path, array, said, view, one_sentence):
    folder = folder_of(tmp_path, array, "tif")

    def pixels() -> None:
        assert load(str(folder), view).test.images is None

    text = one_sentence(pixels)
    assert said in text
    assert str(folder) in text
    assert "save it with 8 bits a channel" in text
    assert "ResizeCrop" not in text


def test_16_bits_as_they_are_are_refused_with_a_remedy_that_works(tmp_path, one_sentence):
    folder = folder_of(tmp_path, np.full((9, 12), 65535, np.uint16), "png")
    assert "mode I;16" in (text := one_sentence(load, str(folder)))
    assert "view=ResizeCrop(224)" in text
    assert (load(str(folder), ResizeCrop(8)).test.images == 255).all()
