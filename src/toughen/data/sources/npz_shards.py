"""Images in several .npz files that are one data set, like gen-00000.npz and gen-00001.npz: joined in their order.

A file whose name says train, val or test holds that part; each of the others says by its arrays (see `npz`), `image`
and `label` alone being training images. Where all together are too large for memory, nothing is read whole.

    found = find_shards([Path("gen-00000.npz"), Path("gen-00001.npz")], name="gen")
"""

import glob
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from toughen.data import decode
from toughen.data.file_pixels import JoinedPixels
from toughen.data.files import IMAGES, LARGE, SPLITS, files_keys, refuse_gaps, split_in, visible
from toughen.data.image_source import Collection, RawDataset, holds_pixels
from toughen.data.sources.npz import compressed_images, find_npz
from toughen.data.unpacked import unpack
from toughen.storage.limits import shown


def find_shards(paths: Sequence[Path], name: str, *, unlabelled: bool = False) -> RawDataset:
    """The images and labels in some .npz files, each part of them joined.

    Args:
        paths: the files, in the order in which they are joined.
        name: what the data are called.
        unlabelled: whether labels may be missing, in all of them; they are -1 then.

    Raises:
        ValueError: as for `find_npz`; or the files are not of one kind.
    """
    if len(paths) == 1:
        return find_npz(paths[0], unlabelled=unlabelled)
    packed = [member for path in paths for member in compressed_images(path)]
    stored = sum(path.stat().st_size for path in paths)
    large = stored >= LARGE or sum(info.file_size for _, info in packed) > decode.IN_MEMORY
    if large and packed:
        unpack(packed)
    found = [find_npz(path, unlabelled=unlabelled, one_of_many=large) for path in paths]
    if len(classes := {each.classes for each in found}) > 1:
        other = next(path for path, each in zip(paths, found, strict=True) if each.classes != found[0].classes)
        raise ValueError(f"{other} names other classes than {paths[0]}; give files of one data set.")
    by_part: dict[str, list[tuple[Path, Collection]]] = {}
    for path, each in zip(paths, found, strict=True):
        for part, collection in each.parts.items():
            said = split_in(path.stem) if [*each.parts] == ["train"] else None
            by_part.setdefault(said or part, []).append((path, collection))
    parts = {part: _joined(by_part[part]) for part in SPLITS if part in by_part}
    # By their order and not by their names, so that a moved set is the same one.
    key = files_keys({f"npz-{number}": path for number, path in enumerate(paths)}, "npz")[0]
    return RawDataset(name, parts, classes.pop(), key)


def holds_npz(folder: Path) -> bool:
    """Whether .npz files lie in a folder, and no folders or images beside them."""
    inside = visible(folder)
    return any(path.suffix == ".npz" for path in inside) and not any(
        path.is_dir() or path.name.lower().endswith(IMAGES) for path in inside
    )


def find_folder(folder: Path, *, unlabelled: bool = False) -> RawDataset:
    """The .npz files in a folder, which are one data set by their names.

    Raises:
        ValueError: as for `find_shards`; or each of them may be a data set.
    """
    files = [path for path in visible(folder) if path.suffix == ".npz"]
    if together(files):
        return find_shards(in_order(files), folder.resolve().name, unlabelled=unlabelled)
    raise ValueError(
        f"{folder} holds {shown([path.name for path in files], 3)}, of which each may be a data set; give one of them "
        f"or, where they are one together, {folder / '*.npz'}."
    )


def together(paths: Sequence[Path]) -> bool:
    """Whether .npz files are one data set by their names: alike but for a number, or each of a split."""
    names = {re.sub(r"\d+", "0", path.stem) for path in paths}
    return len(names) == 1 or all(split_in(path.stem) for path in paths)


def in_order(paths: Iterable[Path]) -> list[Path]:
    """The files of a folder or pattern sorted by name, numbers by their value: gen-2 before gen-10.

    Raises:
        ValueError: one is missing that lies between them by its number, or that their names speak of.
    """

    def key(path: Path) -> list[tuple[str, int]]:
        pieces = re.split(r"(\d+)", str(path))
        return [(text, int(number or 0)) for text, number in zip(pieces[::2], [*pieces[1::2], "0"], strict=True)]

    found = sorted(paths, key=key)
    refuse_gaps(found)
    numbered = [match for path in found if (match := re.fullmatch(r"(.*?)(\d+)", path.stem))]
    for before, after in pairwise(numbered):
        if before[1] == after[1] and int(after[2]) > int(before[2]) + 1:
            lost = f"{before[1]}{int(before[2]) + 1:0{len(before[2])}}.npz"
            raise ValueError(
                f"{found[0].parent} lacks {lost}, which lies between the others by its number; fetch it, or give the "
                "files that there are as a list."
            )
    return found


def matching(pattern: str) -> list[Path]:
    """The files of a pattern like gen/*.npz, in order; none where it is no pattern.

    Raises:
        ValueError: no file is called so, or one that is is no .npz file.
    """
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return []
    paths = in_order(map(Path, glob.glob(pattern)))
    if not paths:
        raise ValueError(f"No file is called like {pattern}; check the pattern.")
    if other := next((path for path in paths if path.suffix.lower() != ".npz" or not path.is_file()), None):
        raise ValueError(f"{other} is called like {pattern} and is no .npz file; give a pattern of .npz files.")
    return paths


def _joined(held: Sequence[tuple[Path, Collection]]) -> Collection:
    """One part of several files.

    Raises:
        ValueError: their images are of several sizes, or their labels of several kinds.
    """
    first, images = held[0], []
    for path, collection in held:
        assert holds_pixels(collection.images)
        images.append(collection.images)
        # Of no rows: nothing is read.
        sizes = [source.read_pixels(np.arange(0)).shape[1:] for source in (images[0], images[-1])]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{path} holds images of {sizes[1]} (H, W, C), but {first[0]} of {sizes[0]}; give files with images of "
                "one size."
            )
        kinds = [_kind(each.labels) for each in (first[1], collection)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{path} holds {kinds[1]}, but {first[0]} holds {kinds[0]}; give files of one kind.")
    return Collection(JoinedPixels(images), np.concatenate([collection.labels for _, collection in held]))


def _kind(labels: np.ndarray) -> str:
    if labels.ndim == 2:
        return f"{labels.shape[1]} probabilities an image"
    return "labels" if not len(labels) or (labels >= 0).any() else "images without labels"
