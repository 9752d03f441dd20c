import pytest
import torch

from toughen.data import DATA, ImageData, Split
from toughen.noise import generator

# One thread: tests run side by side on two cores, and sums must not depend on the number of threads.
torch.set_num_threads(1)


def tiny_split(name: str, n: int, classes: int = 4, side: int = 8) -> Split:
    """Images whose class is a bright quarter under noise: a small network learns them in a few steps."""
    draw = generator("tiny", name)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 120, (n, 1, side, side), generator=draw, dtype=torch.uint8)
    half = side // 2
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[i, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 100
    return Split(images, labels)


def tiny_data() -> ImageData:
    """150 training and 40 test images of 8x8."""
    classes = ("a", "b", "c", "d")
    return ImageData("tiny", tiny_split("train", 150), None, tiny_split("test", 40), classes)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tiny data set."""
    monkeypatch.setitem(DATA, "tiny", tiny_data)
    return "tiny"
