"""Known pixels, and every layout that they can be written in, by Pillow, numpy and the standard library alone."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "eel")

Parts = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By split, (N, H, W, C) uint8 pixels and (N,) labels, sorted by label as class folders are."""


def known(shape: tuple[int, ...] = (32, 32, 3), sizes: Mapping[str, int] | None = None, classes: int = 3) -> Parts:
    """Random pixels, each split's labels 0 0 1 1 2 2 and so on."""
    sizes = sizes or {"train": 12, "test": 6}
    return {
        part: (
            np.random.default_rng([n, seed]).integers(0, 256, (n, *shape), dtype=np.uint8),
            np.sort(np.arange(n) % classes),
        )
        for seed, (part, n) in enumerate(sizes.items())
    }


def encoded(array: np.ndarray, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, kind, **settings)
    return file.getvalue()


def write_folder(folder: Path, parts: Parts, names: Mapping[str, str] | None = None, ending: str = "png") -> Path:
    """Class folders; `names` says what each split is called, "" puts its classes into the folder itself."""
    kind = {"png": "PNG", "bmp": "BMP", "ppm": "PPM", "tif": "TIFF", "webp": "WEBP"}[ending.lower()]
    for part, (images, labels) in parts.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / (names or {}).get(part, part) / CLASSES[label] / f"{number:06d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    return folder


def write_npz(path: Path, parts: Parts, **more: np.ndarray) -> Path:
    arrays = {f"{part}_images": images for part, (images, _) in parts.items()}
    arrays |= {f"{part}_labels": labels for part, (_, labels) in parts.items()}
    np.savez(path, allow_pickle=False, **arrays, **more)
    return path


def write_binary(folder: Path, parts: Parts, coarse: bool = False) -> Path:
    """CIFAR's binary files, the training images dealt over five, or CIFAR-100's with a coarse label before the fine."""
    folder.mkdir(parents=True)
    for part, (images, labels) in parts.items():
        prefix = [7 - labels] if coarse else []
        columns = [*prefix, labels, images.transpose(0, 3, 1, 2).reshape(len(images), -1)]
        records = np.concatenate([column.reshape(len(images), -1) for column in columns], 1).astype(np.uint8)
        if coarse or part == "test":
            records.tofile(folder / (f"{part}.bin" if coarse else "test_batch.bin"))
            continue
        for number, chunk in enumerate(np.array_split(records, 5), 1):
            chunk.tofile(folder / f"data_batch_{number}.bin")
    (folder / ("fine_label_names.txt" if coarse else "batches.meta.txt")).write_text("\n".join(CLASSES) + "\n\n")
    return folder


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, parts: Parts, per_shard: int = 5, label: str = "cls") -> Path:
    for part, (images, labels) in parts.items():
        for start in range(0, len(images), per_shard):
            members = {}
            for number in range(start, min(start + per_shard, len(images))):
                value = int(labels[number])
                text = str(value) if label == "cls" else json.dumps({"label": value, "caption": "a pet"})
                members[f"{number:06d}.png"] = encoded(images[number])
                members[f"{number:06d}.{label}"] = text.encode()
            write_tar(folder / f"{part}-{start:06d}.tar", members)
    return folder


def python2_pickle(data: np.ndarray, labels: list[int], key: bytes = b"labels") -> bytes:
    """What Python 2 wrote: byte strings as they are, an array of numpy's old module. Protocol 2, opcode by opcode."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + len(text).to_bytes(4, "little") + text

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN"
    dtype += number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R(K\x01"
    array += number(data.shape[0]) + number(data.shape[1]) + b"\x86" + dtype + b"\x89" + string(data.tobytes()) + b"tb"
    values = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(key) + values + b"u."


def write_python(folder: Path, parts: Parts, protocol: int | None = None, fine: bool = False) -> Path:
    """CIFAR's Python files as Python 2 wrote them, or by this Python's pickle in some protocol; or CIFAR-100's."""
    folder.mkdir(parents=True)
    key = "fine_labels" if fine else "labels"

    def write(name: str, images: np.ndarray, labels: np.ndarray) -> None:
        data = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))
        if protocol is None:
            content = python2_pickle(data, labels.tolist(), key.encode())
        else:
            content = pickle.dumps({b"data": data, key.encode(): labels.tolist(), b"batch_label": b"one"}, protocol)
        (folder / name).write_bytes(content)

    images, labels = parts["train"]
    if fine:
        write("train", images, labels)
    else:
        for number, rows in enumerate(np.array_split(np.arange(len(images)), 5), 1):
            write(f"data_batch_{number}", images[rows], labels[rows])
    write("test" if fine else "test_batch", *parts["test"])
    names = {f"{'fine_' if fine else ''}label_names".encode(): [name.encode() for name in CLASSES]}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(names, 2))
    return folder
