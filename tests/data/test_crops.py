import io
import math

import numpy as np
import pytest
from PIL import Image

from photographs import photograph
from toughen.data.crops import ResizeCrop


def jpeg(width: int, height: int, number: int = 0) -> bytes:
    buffer = io.BytesIO()
    photograph(number, width, height).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("width", "height"), [(50, 40), (40, 50), (37, 37)])
def test_the_centre_is_pillows_to_the_bit(width, height):
    data = jpeg(width, height)
    scale = 32 / min(width, height)
    resized = opened(data).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - 28) // 2, (resized.height - 28) // 2
    expected = resized.crop((left, top, left + 28, top + 28))
    assert np.array_equal(ResizeCrop(28).centre(opened(data)), np.asarray(expected))


def test_short_side():
    assert ResizeCrop(224).short_side == 256
    assert ResizeCrop(224, resize=232).short_side == 232
    assert ResizeCrop(8, resize=8).centre(photograph(0, 9, 9)).shape == (8, 8, 3)


def test_a_random_part_is_pillows_to_the_bit():
    data, view = jpeg(50, 40), ResizeCrop(28)
    for seed in range(30):
        box = view.box((50, 40), np.random.default_rng(seed))
        expected = opened(data).resize(
            (28, 28), Image.Resampling.BILINEAR, box=(box[0], box[1], box[0] + box[2], box[1] + box[3])
        )
        assert np.array_equal(view.random(opened(data), np.random.default_rng(seed)), np.asarray(expected))


def test_a_large_jpeg_is_drafted_and_the_part_is_the_same_part():
    data, view = jpeg(1600, 1200), ResizeCrop(28, area=0.9)
    for seed in range(5):
        image = opened(data)
        drafted = view.random(image, np.random.default_rng(seed))
        assert image.size == (200, 150)
        left, top, width, height = view.box((1600, 1200), np.random.default_rng(seed))
        full = opened(data).resize((28, 28), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        # The photographs are smooth: a wrong box moves pixels by many levels.
        assert np.abs(drafted.astype(int) - np.asarray(full)).max() <= 4
        moved = opened(data).resize((28, 28), Image.Resampling.BILINEAR, box=(0, 0, width // 2, height // 2))
        assert np.abs(drafted.astype(int) - np.asarray(moved)).max() > 20


def test_a_drafted_part_has_pixels_to_spare():
    for seed in range(200):
        size = tuple(np.random.default_rng(seed).integers(30, 900, 2).tolist())
        image, view = opened(jpeg(*size)), ResizeCrop(24)
        _, _, width, height = view.box(size, np.random.default_rng(seed))
        view.random(image, np.random.default_rng(seed))
        for part, full, draft in ((width, size[0], image.size[0]), (height, size[1], image.size[1])):
            assert draft == full or part * draft / full >= 24 - 1e-9


def test_areas_and_shapes_are_those_of_the_definition():
    view = ResizeCrop(8, area=0.25)
    boxes = np.array([view.box((400, 400), np.random.default_rng(seed)) for seed in range(2000)], dtype=float)
    left, top, width, height = boxes.T
    area, shape = width * height / 400**2, np.log(width / height)
    assert area.min() > 0.245
    assert area.max() <= 1
    assert abs(shape).max() < math.log(4 / 3) + 0.02
    # Uniform in [1/4, 1] but for the parts that do not fit, which are the large ones.
    counts = np.histogram(area, bins=np.linspace(0.25, 0.7, 4))[0]
    assert counts.max() < 1.25 * counts.min()
    assert abs(np.mean(shape)) < 0.02
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 400).all()
    assert (top + height <= 400).all()


def test_a_part_that_never_fits_is_the_largest_centred_one():
    assert ResizeCrop(8, area=1.0).box((300, 100), np.random.default_rng(0)) == (83, 0, 133, 100)
    assert ResizeCrop(8, area=1.0).box((100, 300), np.random.default_rng(0)) == (0, 83, 100, 133)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_every_mode_becomes_rgb(mode):
    image = photograph(1, 50, 40).convert(mode)
    expected = image.convert("RGB").resize((50, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(ResizeCrop(40, resize=40).centre(image), np.asarray(expected.crop((5, 0, 45, 40))))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"size": 0}, "at least one"),
        ({"size": 8, "resize": 7}, "at least the size"),
        ({"size": 8, "area": 0}, "(0, 1]"),
    ],
)
def test_refusals(settings, part, one_sentence):
    assert part in one_sentence(ResizeCrop, **settings)


def test_what_hashes_of_data_say_of_it_stays():
    """Runs that were begun before the class had its name go on: their data have the same fingerprints."""
    assert ResizeCrop(16).key == "View(size=16, resize=None, area=0.08)"
    assert ResizeCrop(16, resize=20, area=0.5).key == "View(size=16, resize=20, area=0.5)"
