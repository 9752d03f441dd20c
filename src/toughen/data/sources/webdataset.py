"""Images in the shards of webdataset: uncompressed tar files of KEY.jpg and KEY.cls, or KEY.json with a label.

Which split a shard belongs to its name says (train-0000.tar, imagenet-validation-07.tar), or the folder it is in;
shards that say nothing are all training. The shards are gone through once for the places of their members; from then on
an image is read where it lies, in any order and by any process. Classes are called by their numbers. (HF `datasets`
copies every image of a shard into its cache, reads a member whole however large it says it is, and finds no labels.)

    found = find_shards(Path("shards"))
    found.parts["train"].images.name(17)                     # "n01440764_10026.jpg in shards/train-0000.tar"
"""

import bz2
import io
import itertools
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toughen.data.files import (
    IMAGES,
    SPLITS,
    files_keys,
    open_image,
    refuse_gaps,
    split_in,
    split_of,
    visible,
    what_it_is,
)
from toughen.data.image_source import Collection, RawDataset

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")

# A label is a number; a member that says it is one and is longer than this is something else.
LABEL_BYTES = 2**20

HEAD = 2**20


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Images in tar files, by their places.

    Args:
        shards: the files.
        shard: (N,) int32, which of them each is in.
        place: (N, 2) int64, the first byte of each in it, and how many there are.
        keys: the members' names.
    """

    shards: tuple[str, ...]
    shard: np.ndarray
    place: np.ndarray
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sources(self) -> tuple[str, ...]:
        """The files."""
        return self.shards

    def open(self, number: int) -> Image.Image:
        """One image, its header read."""
        start, length = self.place[number].tolist()
        # Opened for each image: no handle is shared between processes, and the system keeps the file at hand.
        with open(self.shards[self.shard[number]], "rb") as file:
            file.seek(start)
            return open_image(file.read(length))

    def name(self, number: int) -> str:
        """Its place."""
        return f"{self.keys[number]} in {self.shards[self.shard[number]]}"


def find_shards(folder: Path, *, unlabelled: bool = False) -> RawDataset:
    """The images and labels in a folder of shards.

    Args:
        folder: where the tar files are, or folders called like splits that have them.
        unlabelled: whether labels may be missing; they are -1 then.

    Raises:
        ValueError: a shard is compressed, damaged or no tar file, or an example has no label or no image.
    """
    shards = {part: paths for part, paths in _shards(folder).items() if paths}
    files = {f"{part}/{path.name}": path for part, paths in shards.items() for path in paths}
    key, keys = files_keys(files, "shards")
    parts = {part: _collection(paths, keys[part], unlabelled) for part, paths in shards.items()}
    return RawDataset(folder.resolve().name, parts, (), key)


def holds_shards(folder: Path) -> bool:
    """Whether tar files that may be shards lie in a folder or in folders in it that are called like splits.

    An archive that is compressed, or lies beside what may have been unpacked from it, must have labels to be a shard.
    """
    splits = _split_folders(folder)
    beside = any(path.is_dir() and path not in splits.values() for path in visible(folder))
    return any(
        not (beside or path.name.lower().endswith(COMPRESSED)) or is_shard(path)
        for place in (folder, *splits.values())
        for path in _archives(place)
    )


def is_shard(path: Path) -> bool:
    """Whether a tar file, compressed or not, has labels among its first members, as webdataset's shards do."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_head(path))) as archive:
            return any(member.name.lower().endswith((".cls", ".json")) for member in itertools.islice(archive, 64))
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError):
        return False


def _head(path: Path) -> bytes:
    """The first megabyte of an archive, unpacked: a small file may hold a very large one."""
    with path.open("rb") as file:
        start = file.read(HEAD)
    decoders: dict[bytes, Callable[[], Any]] = {
        b"\x1f\x8b": lambda: zlib.decompressobj(31),
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=2**27),
    }
    decoder = next((make() for sign, make in decoders.items() if start.startswith(sign)), None)
    return decoder.decompress(start, HEAD) if decoder else start


def _shards(folder: Path) -> dict[str, list[Path]]:
    places = _split_folders(folder)
    found = {part: _archives(places[part]) if part in places else [] for part in SPLITS}
    here = _archives(folder)
    for path in here:
        if part := split_in(path.name):
            found[part].append(path)
    if not any(found.values()):
        found["train"] = here
    refuse_gaps(path for paths in found.values() for path in paths)
    if compressed := [path for paths in found.values() for path in paths if path.name.lower().endswith(COMPRESSED)]:
        raise ValueError(
            f"{compressed[0]} is compressed, so that single images cannot be read from it; decompress it to a .tar."
        )
    return found


def _split_folders(folder: Path) -> dict[str, Path]:
    return {part: path for path in sorted(folder.iterdir()) if path.is_dir() and (part := split_of(path.name))}


def _archives(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith((".tar", *COMPRESSED)) and not path.name.startswith(".")
    )


def _collection(paths: list[Path], key_of_part: str, unlabelled: bool) -> Collection:
    shard, place, names, labels = [], [], [], []
    for number, path in enumerate(paths):
        images, label_of = _members(path)
        for key in images | dict.fromkeys(label_of):
            if key not in images:
                raise ValueError(f"{key} in {path} has a label but no image ({', '.join(IMAGES[:4])}); remove it.")
            name, start, length = images[key]
            if key not in label_of and not unlabelled:
                raise ValueError(f"{name} in {path} has no label; add {key}.cls with its class index, or remove it.")
            shard.append(number)
            place.append((start, length))
            names.append(name)
            labels.append(label_of.get(key, -1))
    if not names:
        raise ValueError(
            f"{paths[0]} holds no images{' nor do those beside it' * (len(paths) > 1)}; give shards with some."
        )
    images = ShardImages(tuple(map(str, paths)), np.array(shard, np.int32), np.array(place, np.int64), tuple(names))
    return Collection(images, np.array(labels, np.int64), key_of_part)


def _members(path: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """By key: the image's name, first byte and length; and the label."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, slash, base = member.name.rpartition("/")
                key, _, ending = base.partition(".")
                key, ending = f"{folder}{slash}{key}", ending.lower()
                if not member.isreg() or not key or base.startswith("."):
                    continue
                if f".{ending}" in IMAGES:
                    if key in images:
                        raise ValueError(f"{path} holds two images of {key}; leave one of them there.")
                    images[key] = (member.name, member.offset_data, member.size)
                elif ending in ("cls", "json") and member.size <= LABEL_BYTES:
                    file = archive.extractfile(member)
                    assert file
                    label = _label(file.read(), ending, f"{member.name} in {path}")
                    if label is not None:
                        labels[key] = label
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  (a million of them fill the memory)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
        if type(error) is ValueError and str(path) in str(error):
            raise
        kind = what_it_is(path)
        kind = "a damaged tar file" if kind == "a tar archive" else kind
        remedy = "decompress it, and call it .tar" if kind.startswith("compressed") else "fetch or write it again"
        raise ValueError(f"{path} is {kind}, not a whole .tar file; {remedy}.") from error
    # tarfile takes a file that ends within its last member for a whole one.
    if max((start + length for _, start, length in images.values()), default=0) > path.stat().st_size:
        raise ValueError(f"{path} is a damaged tar file, not a whole .tar file; fetch or write it again.")
    return images, labels


def _label(content: bytes, ending: str, where: str) -> int | None:
    try:
        if ending == "cls":
            return int(content.decode().strip())
        read = json.loads(content)
        label = read.get("label") if isinstance(read, dict) else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no label; write the class index as a number like 7.") from error
    if label is not None and (not isinstance(label, int) or isinstance(label, bool)):
        raise ValueError(f"{where} gives the label {label!r}; write the class index as a number like 7.")
    return label
