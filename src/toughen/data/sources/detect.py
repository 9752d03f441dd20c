"""Which kind of data lies at a path.

find_path(Path("pets"))                                  # class folders, parquet, shards, an .npz file, ...

A folder that only wraps the one that holds the data stands for it, at any depth, and a note says so; one that holds
several data sets is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from toughen.data.files import DATA, PACKED, PICKLE, SAVE, no_image, visible, what_it_is
from toughen.data.image_source import RawDataset
from toughen.data.sources import (
    cifar_binary,
    cifar_pickle,
    idx,
    image_folder,
    labels_table,
    npz,
    npz_shards,
    parquet,
    saved_arrow,
    webdataset,
)
from toughen.data.sources.image_files import holds_images, holds_images_within
from toughen.errors import Command

DEPTH = 12
"""Folders that may be wrapped around the data."""

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin")
"""Of files that are no images, whatever is in them."""

Holds = Callable[[Path], object]
Find = Callable[[Path, bool], RawDataset]


def _refuse_pickles(folder: Path, unlabelled: bool) -> RawDataset:
    raise _to_import(folder, "holds CIFAR's Python layout, which is made of pickles")


LAYOUTS: Mapping[str, tuple[Holds, Find]] = {
    "parquet": (parquet.holds_parquet, lambda path, free: parquet.find_parquet(path, unlabelled=free)),
    "binary": (cifar_binary.layout_of, lambda path, free: cifar_binary.find_binary(path)),
    "pickle": (cifar_pickle.layout_of, _refuse_pickles),
    "idx": (idx.holds_idx, lambda path, free: idx.find_idx(path)),
    "arrow": (saved_arrow.holds_arrow, lambda path, free: saved_arrow.find_arrow(path, unlabelled=free)),
    "npz": (npz_shards.holds_npz, lambda path, free: npz_shards.find_folder(path, unlabelled=free)),
    "splits": (image_folder.split_folders, lambda path, free: image_folder.find_folder(path)),
    "shards": (webdataset.holds_shards, lambda path, free: webdataset.find_shards(path, unlabelled=free)),
}
"""What a folder may hold beside class folders: how that is told and how it is read, where labels may be missing or not,
in the order in which it is looked for."""


def find_path(path: Path, *, unlabelled: bool = False) -> RawDataset:
    """What a folder or file holds.

    Args:
        path: where the data are.
        unlabelled: whether labels may be missing, as in a pool of images or an extra set; they are -1 then.

    Raises:
        ValueError: there is nothing, or it is none of the forms that are read, or it is damaged; says what is wrong.
    """
    place = locate(path)
    found = _find_folder(place, unlabelled) if place.is_dir() else _find_file(place, unlabelled)
    return replace(found, name=name_of(path, found.name), notes=(*said(path, place), *found.notes))


def locate(path: Path) -> Path:
    """The folder that holds the data of a path: itself, or the one that it is wrapped around.

    Raises:
        ValueError: it holds several data sets.
    """
    place = path
    for _ in range(DEPTH):
        if not place.is_dir() or _layout(place) or holds_images(place) or (below := _wrapped(place)) is None:
            break
        place = below
    return place


def said(path: Path, place: Path) -> tuple[str, ...]:
    """What to tell the user of data that were given as one path and lie in another."""
    return () if place == path else (f"the data of {path} lie in {place}, and are read there",)


def name_of(path: Path, found: str) -> str:
    """What the data of a path are called: like its folder."""
    return path.resolve().name if path.is_dir() else found


def _layout(folder: Path) -> str:
    return next((name for name, (holds, _) in LAYOUTS.items() if holds(folder)), "")


def _wrapped(folder: Path) -> Path | None:
    """The only folder in another that holds data, where the others are no classes beside it."""
    if (folder / "snapshots").is_dir() and (folder / "refs").is_dir():
        # The cache of the Hub's client; the newest commit lies in the folder that was written last.
        return max((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    inside = [path for path in visible(folder) if path.is_dir()]
    sets = [path for path in inside if _is_set(path)]
    full = [path for path in inside if path in sets or holds_images_within(path)]
    if len(sets) > 1 or (sets and len(full) > 1):
        others = f" beside {next(path.name for path in full if path not in sets)}" if len(sets) == 1 else ""
        names = ", ".join(path.name for path in sets[:5])
        raise ValueError(f"{folder} is no data set but holds {names}{others}; give the folder of one, like {sets[0]}.")
    if len(full) != 1:
        return None
    if sets:
        return sets[0]
    classes = [path for path in visible(full[0]) if path.is_dir() and holds_images_within(path)]
    return full[0] if len(classes) > 1 and not holds_images(full[0]) and not _table(folder) else None


def _is_set(folder: Path, depth: int = DEPTH) -> bool:
    """Whether a folder is a data set of its own and no class, or has one below it."""
    if holds_images(folder) or not depth:
        return False
    below = (path for path in visible(folder) if path.is_dir())
    return bool(_layout(folder)) or any(_is_set(path, depth - 1) for path in below)


def _table(folder: Path) -> bool:
    """Whether the images in a folder take their labels from a table, and not from the folders that they lie in."""
    inside = [path for path in visible(folder) if path.is_dir()]
    classes = [path for path in inside if path.name.lower() not in image_folder.GENERIC and holds_images_within(path)]
    named = [path for path in classes if not labels_table.split_said(path.name)]
    return (holds_images(folder) or len(named) < 2) and labels_table.holds_table(folder)


def _find_folder(folder: Path, unlabelled: bool) -> RawDataset:
    if layout := _layout(folder):
        return LAYOUTS[layout][1](folder, unlabelled)
    if _table(folder):
        return labels_table.find_table(folder, unlabelled=unlabelled)
    inside = visible(folder)
    if not inside:
        raise ValueError(
            f"The folder {folder} holds no train-*.parquet, no class folders of images and no shards; give a folder of "
            "data."
        )
    folders = [entry for entry in inside if entry.is_dir()]
    alone = len(folders) == 1 and folders[0].name.lower() in image_folder.GENERIC and holds_images(folders[0])
    if folders and (unlabelled or not alone):
        return image_folder.find_folder(folder)
    if not (alone or holds_images(folder)):
        if pickles := cifar_pickle.pickles_in(folder):
            raise _to_import(pickles[0], f"is {PICKLE}")
        raise no_image(inside[0])
    if unlabelled:
        return image_folder.find_flat(folder)
    if tables := labels_table.tables_in(folder):
        return labels_table.find_table(tables[0])
    above = f", or, where it is one class of several or its table lies beside it, give {folder.resolve().parent}"
    raise ValueError(
        f"{folder} holds images but no class folders; put the images of each class into a folder of it, or write a "
        f"table labels.csv of the columns filename and label into it{'' if alone else above}."
    )


def _to_import(path: Path, what: str) -> ValueError:
    out = f"{path.stem if path.is_file() else path.name}.npz"
    return ValueError(
        f"{path} {what}, and read only once; run `{Command('import', path, out=out)}` and give {out} in its place."
    )


def _find_file(path: Path, unlabelled: bool) -> RawDataset:
    ending = path.suffix.lower()
    if not path.exists() and ending == ".npz":
        raise ValueError(f"The file {path} does not exist; check the path.")
    if not path.exists():
        raise ValueError(
            f"The folder {path} does not exist; give a folder of class folders, of parquet files or of shards, or an "
            ".npz file."
        )
    if ending == ".npz":
        return npz.find_npz(path, unlabelled=unlabelled)
    if idx.is_idx(path):
        return idx.find_idx(path)
    if labels_table.is_table(path):
        return labels_table.find_table(path, unlabelled=unlabelled)
    kind = what_it_is(path)
    if kind == PICKLE and path.suffix not in WEIGHTS:
        raise _to_import(path, f"is {kind}")
    total = re.search(r"-of-(\d+)", path.name)
    single = total is None or int(total[1]) == 1
    if kind == "a parquet file" and single:
        return parquet.find_parquet(path, unlabelled=unlabelled)
    if kind == "an arrow file" and single:
        return saved_arrow.find_arrow(path, unlabelled=unlabelled)
    remedy = "give a folder of images, or an .npz file"
    packed = path.name.lower().endswith(PACKED) or "archive" in kind or "compressed" in kind
    if kind in ("a parquet file", "an arrow file") or cifar_binary.layout_of(path.parent):
        remedy = f"give the folder that holds it, {path.parent}"
    elif packed and webdataset.is_shard(path):
        first = "decompress it to a .tar, and " if kind != "a tar archive" else ""
        remedy = f"{first}give the folder that holds it, {path.parent}"
    elif path.name.lower().endswith(DATA):
        remedy = SAVE
    elif packed:
        remedy = "unpack it and give the folder"
    raise ValueError(f"{path} is {kind}, but data are a folder or an .npz file; {remedy}.")
