"""Layouts that strangers bring, written by the standard library, numpy, Pillow and HF `datasets`."""

import gzip
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import datasets
import numpy as np

from layouts import CLASSES, Parts, encoded, known, write_binary, write_folder, write_npz, write_shards, write_tar

COLOUR = known((8, 8, 3), {"train": 30, "test": 12})
GREY = known((8, 8, 1), {"train": 30, "test": 12})
CIFAR = known((32, 32, 3), {"train": 30, "test": 12})
TRAIN, TEST = {"train": COLOUR["train"]}, {"test": COLOUR["test"]}

Rows = list[tuple[str, int]]


def images(folder: Path, part: str = "train", name: str = "{:04d}.png") -> Rows:
    """The images of a part in a folder without class folders; their names and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = COLOUR[part]
    for number, image in enumerate(pixels):
        (folder / name.format(number)).write_bytes(encoded(image))
    return [(name.format(number), int(label)) for number, label in enumerate(labels)]


def table(path: Path, header: str, rows: Iterable[Iterable[object]], separator: str = ",") -> Path:
    """A table of text; returns its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [separator.join(map(str, row)) for row in rows]
    path.write_text("\n".join([header, *lines] if header else lines) + "\n")
    return path.parent


def named(rows: Rows) -> list[tuple[str, str]]:
    """The rows with the classes' names, without the endings of the files."""
    return [(name[:-4], CLASSES[label]) for name, label in rows]


def idx(path: Path, array: np.ndarray, *, packed: bool = False) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)


def write_mnist(
    folder: Path, form: str = "{}-{}-idx{}-ubyte", parts: Iterable[str] = ("train", "test"), *, packed: bool = False
) -> Path:
    for part in parts:
        pixels, labels = GREY[part]
        word = "t10k" if part == "test" and "emnist" not in form else part
        ending = ".gz" if packed else ""
        idx(folder / (form.format(word, "images", 3) + ending), pixels[..., 0], packed=packed)
        idx(folder / (form.format(word, "labels", 1) + ending), labels, packed=packed)
    return folder


def hugging_face(part: str) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    pixels, labels = COLOUR[part]
    cells = [{"bytes": encoded(image), "path": None} for image in pixels]
    rows = {"image": cells, "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


def saved(folder: Path, *parts: str, shards: int | None = None) -> Path:
    """What `save_to_disk` writes: of one part a data set, of several a dictionary of them."""
    several = {part: hugging_face(part) for part in parts}
    if len(several) == 1 and shards is None:
        several[parts[0]].save_to_disk(folder)
    else:
        datasets.DatasetDict(list(several.items())).save_to_disk(folder, num_shards=dict.fromkeys(parts, shards or 1))
    return folder


def hugging_face_cache(folder: Path) -> Path:
    inside = folder / "uoft-cs___cifar10" / "plain_text" / "0.0.0" / "abc"
    inside.mkdir(parents=True)
    both = saved(folder.with_name("saved"), "train", "test")
    for part in ("train", "test"):
        shutil.copy(next((both / part).glob("*.arrow")), inside / f"cifar10-{part}.arrow")
    shutil.copy(inside / "cifar10-test.arrow", inside / "cache-0123.arrow")
    (inside / "dataset_info.json").write_text("{}")
    return folder


def parquet(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        hugging_face("test" if "test" in name else "train").to_parquet(folder / f"{name}.parquet")
    return folder


def hub_cache(folder: Path) -> Path:
    inside = folder / "datasets--a--b"
    for name in ("refs", "blobs"):
        (inside / name).mkdir(parents=True)
    (inside / "refs" / "main").write_text("c1")
    parquet(inside / "snapshots" / "c1" / "plain_text", "train-00000-of-00001", "test-00000-of-00001")
    return folder


def tiny_imagenet(folder: Path) -> Path:
    pixels, labels = COLOUR["train"]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / "train" / CLASSES[label] / "images"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{CLASSES[label]}_{number:02d}.png").write_bytes(encoded(image))
        (place.parent / f"{CLASSES[label]}_boxes.txt").write_text("0.png\t0\t0\t1\t1\n")
    rows = images(folder / "val" / "images", "test", "val_{:02d}.png")
    boxes = [(name, CLASSES[label], 0, 0, 62, 57) for name, label in rows]
    table(folder / "val" / "val_annotations.txt", "", boxes, "\t")
    images(folder / "test" / "images", "test", "test_{:02d}.png")
    return table(folder / "wnids.txt", "cat", [])


def signs(folder: Path) -> Path:
    """Class folders to train on, a table for the test images, as Kaggle has GTSRB."""
    pixels, labels = COLOUR["train"]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / "Train" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02d}.png").write_bytes(encoded(image))
    rows = images(folder / "Test", "test")
    return table(folder / "Test.csv", "Width,ClassId,Path", [(8, label, f"Test/{name}") for name, label in rows])


def beside(folder: Path, *names: str) -> Path:
    """With what lies about on a user's disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name
        path.mkdir(parents=True) if "." not in name[1:] and name != ".DS_Store" else path.write_text("none")
    return folder


def arrays(path: Path, images: str, labels: str, parts: Parts = COLOUR) -> Path:
    """An .npz file whose arrays are called so; `{}` stands for the split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = {part: (images.format(part), labels.format(part)) for part in parts}
    np.savez(
        path,
        allow_pickle=False,
        **{name: array for part in parts for name, array in zip(pairs[part], parts[part], strict=True)},
    )
    return path


Write = Callable[[Path], Path]

SPLIT: Mapping[str, tuple[Parts, Write]] = {
    "one folder above the splits": (COLOUR, lambda p: write_folder(p / "dataset", COLOUR).parent),
    "three above, and rubbish beside": (
        COLOUR,
        lambda p: beside(
            write_folder(p / "a" / "b" / "dataset", COLOUR).parents[2], "__MACOSX", ".DS_Store", "README.md"
        ),
    ),
    "code beside the data": (COLOUR, lambda p: beside(write_folder(p / "data", COLOUR).parent, "code", "docs")),
    "images below the split": (
        COLOUR,
        lambda p: write_folder(p, COLOUR, {"train": "train/images", "test": "test/images"}),
    ),
    "MNIST": (GREY, write_mnist),
    "MNIST, packed": (GREY, lambda p: write_mnist(p, packed=True)),
    "MNIST, packed and not, below raw": (
        GREY,
        lambda p: write_mnist(write_mnist(p / "MNIST" / "raw", packed=True)).parents[1],
    ),
    "MNIST with dots": (GREY, lambda p: write_mnist(p, "{}-{}.idx{}-ubyte")),
    "MNIST, one of its files": (GREY, lambda p: write_mnist(p) / "t10k-images-idx3-ubyte"),
    "MNIST, another of its files": (GREY, lambda p: write_mnist(p, packed=True) / "train-labels-idx1-ubyte.gz"),
    "EMNIST": (GREY, lambda p: write_mnist(p, "emnist-letters-{}-{}-idx{}-ubyte", packed=True)),
    "CIFAR, one folder above": (CIFAR, lambda p: write_binary(p / "cifar-10-batches-bin", CIFAR).parent),
    "CIFAR beside its archive": (
        CIFAR,
        lambda p: (
            write_tar(
                write_binary(p / "cifar-10-batches-bin", CIFAR).parent / "cifar-10.tar.gz", {"a": b"b"}, "w:gz"
            ).parent
        ),
    ),
    "shards, one folder above": (COLOUR, lambda p: write_shards(p / "shards", COLOUR).parent),
    "save_to_disk": (COLOUR, lambda p: saved(p / "pets", "train", "test")),
    "save_to_disk in shards, one folder above": (COLOUR, lambda p: saved(p / "pets", "train", "test", shards=3).parent),
    "the cache of datasets": (COLOUR, lambda p: hugging_face_cache(p / "cache")),
    "the cache of the Hub": (COLOUR, hub_cache),
    "parquet, one folder above": (COLOUR, lambda p: parquet(p / "plain_text", "train-0", "test-0").parent),
    "train.npz and test.npz": (
        COLOUR,
        lambda p: arrays(arrays(p / "train.npz", "x", "y", TRAIN).with_name("test.npz"), "x", "y", TEST).parent,
    ),
    "train.csv and test.csv": (
        COLOUR,
        lambda p: table(
            table(p / "train.csv", "image_id,target", images(p / "train_images")) / "test.csv",
            "image_id,target",
            images(p / "test_images", "test"),
        ),
    ),
    "a table in each split": (
        COLOUR,
        lambda p: (
            table(
                table(p / "train" / "labels.csv", "image,label", images(p / "train" / "images")).parent
                / "test"
                / "labels.csv",
                "image,label",
                images(p / "test" / "images", "test"),
            ).parent
        ),
    ),
    "a column of splits": (
        COLOUR,
        lambda p: table(
            p / "meta.csv",
            ",path,label,Data Set",
            [
                (number, f"{part}/{name}", label, part)
                for part in COLOUR
                for number, (name, label) in enumerate(images(p / part, part))
            ],
        ),
    ),
    "folders that say the split": (
        COLOUR,
        lambda p: table(
            p / "all.csv",
            "Path;ClassId;x",
            [(f"{part}/{name}", label, 0) for part in COLOUR for name, label in images(p / part, part)],
            ";",
        ),
    ),
    "Tiny ImageNet": (
        {"train": COLOUR["train"], "validation": COLOUR["test"]},
        lambda p: tiny_imagenet(p / "tiny-imagenet-200").parent,
    ),
    "traffic signs": (COLOUR, signs),
}
"""By name, what is in it and what writes it."""

ALONE: Mapping[str, tuple[str, Parts, Write]] = {
    "folder without splits": ("train", TRAIN, lambda p: write_folder(p, TRAIN, {"train": ""})),
    "one folder above the classes": ("train", TRAIN, lambda p: write_folder(p / "x", TRAIN, {"train": ""}).parent),
    "npz of image and label": ("train", TRAIN, lambda p: arrays(p / "u.npz", "image", "label", TRAIN)),
    "npz of images and labels": ("train", TRAIN, lambda p: arrays(p / "u.npz", "images", "labels", TRAIN)),
    "npz of x and y": ("train", TRAIN, lambda p: arrays(p / "u.npz", "x", "y", TRAIN)),
    "npz of data and labels": ("train", TRAIN, lambda p: arrays(p / "u.npz", "data", "labels", TRAIN)),
    "npz of arrays without names": ("train", TRAIN, lambda p: arrays(p / "u.npz", "arr_0", "arr_1", TRAIN)),
    "parquet": ("train", TRAIN, lambda p: parquet(p, "pets")),
    "parquet, the file": ("train", TRAIN, lambda p: parquet(p, "pets") / "pets.parquet"),
    "shards": ("train", TRAIN, lambda p: write_shards(p, TRAIN)),
    "save_to_disk": ("train", TRAIN, lambda p: saved(p / "pets", "train")),
    "the arrow file": ("train", TRAIN, lambda p: next(saved(p / "pets", "train").glob("*.arrow"))),
    "images beside a table": (
        "train",
        TRAIN,
        lambda p: table(p / "labels.csv", "filename,label", images(p / "images")),
    ),
    "the table": (
        "train",
        TRAIN,
        lambda p: table(p / "labels.csv", "filename,label", images(p / "images")) / "labels.csv",
    ),
    "names without endings, classes by name": (
        "train",
        TRAIN,
        lambda p: table(p / "trainLabels.csv", "id,label", named(images(p / "train"))),
    ),
    "a table elsewhere, absolute paths": (
        "train",
        TRAIN,
        lambda p: (
            table(
                p / "annotations" / "all.tsv",
                "FilePaths\tLabels",
                [(f"/kaggle/input/pets/images/{name}", f"{label}.0") for name, label in images(p / "images")],
                "\t",
            ).parent
        ),
    ),
    "test_images": ("test", TEST, lambda p: arrays(p / "u.npz", "{}_images", "{}_labels", TEST)),
    "x_test": ("test", TEST, lambda p: arrays(p / "u.npz", "x_{}", "y_{}", TEST)),
    "a test folder": ("test", TEST, lambda p: write_folder(p, TEST)),
    "a test folder, one above": ("test", TEST, lambda p: write_folder(p / "pets", TEST).parent),
    "a val folder": ("validation", TEST, lambda p: write_folder(p, TEST, {"test": "val"})),
    "t10k": ("test", {"test": GREY["test"]}, lambda p: write_mnist(p, parts=["test"])),
    "t10k, packed, its file": (
        "test",
        {"test": GREY["test"]},
        lambda p: write_mnist(p, parts=["test"], packed=True) / "t10k-images-idx3-ubyte.gz",
    ),
    "test.parquet": ("test", TEST, lambda p: parquet(p, "test")),
    "test-00000-of-00001.parquet of both": (
        "test",
        TEST,
        lambda p: parquet(p, "train-00000-of-00001", "test-00000-of-00001") / "test-00000-of-00001.parquet",
    ),
    "test shards": ("test", TEST, lambda p: write_shards(p, TEST)),
    "save_to_disk of a test split": ("test", TEST, lambda p: saved(p / "pets", "test", shards=1)),
    "test.csv": ("test", TEST, lambda p: table(p / "test.csv", "file,label", images(p / "test", "test"))),
    "val.txt": (
        "validation",
        TEST,
        lambda p: table(
            table(p / "val.txt", "", images(p / "val", "test"), " ") / "readme.txt", "Read me, please.", []
        ),
    ),
    "test.npz beside nothing": ("train", TEST, lambda p: arrays(p / "test.npz", "x", "y", TEST)),
}
"""By name, which part it is all of, what is in it and what writes it."""

__all__ = ["ALONE", "SPLIT", "write_npz"]
