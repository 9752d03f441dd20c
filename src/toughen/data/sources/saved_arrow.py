"""Arrow files of HF `datasets`: a folder of `save_to_disk`, a folder of its cache, or a single file, read in place.

    Dataset.save_to_disk("pets")                             # pets/state.json, pets/data-00000-of-00001.arrow
    DatasetDict.save_to_disk("pets")                         # pets/dataset_dict.json, pets/train/..., pets/test/...
    cifar10-train.arrow  cifar10-test.arrow                  # the cache's folder of a data set

What was saved is opened by HF `datasets` itself. Files in the cache's folder say by their names which split they are
of; what `map` and `filter` have left there (cache-*.arrow) is no data.

    found = find_arrow(Path("pets"))
"""

import re
from pathlib import Path

import pyarrow as pa

from toughen.data.cache import DAMAGE
from toughen.data.files import SPLITS, by_split, files_keys, refuse_gaps, split_in, split_of, what_it_is
from toughen.data.image_source import RawDataset
from toughen.data.sources.arrow import map_tables
from toughen.data.sources.parquet import Table, read_tables

DICT, STATE = "dataset_dict.json", "state.json"

FAULTS = (*DAMAGE, pa.ArrowException, RecursionError)


def holds_arrow(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, or has arrow files that are data."""
    return any((folder / name).is_file() for name in (DICT, STATE)) or bool(_data_files(folder))


def find_arrow(path: Path, *, unlabelled: bool = False) -> RawDataset:
    """The images and labels in arrow files.

    Args:
        path: the folder, or one file.
        unlabelled: whether a column of labels may be missing; they are -1 then.

    Raises:
        ValueError: a file is missing, damaged or something else, or holds no images and labels.
    """
    saved = path.is_dir() and any((path / name).is_file() for name in (DICT, STATE))
    tables = _saved(path) if saved else _by_split([path] if path.is_file() else _data_files(path))
    files = {part: [Path(file) for file in held] for part, held in tables.items() if isinstance(held, tuple)}
    for file in (file for held in files.values() for file in held):
        _check(file)
    key, keys = files_keys({f"{part}/{file.name}": file for part, held in files.items() for file in held}, "arrow")
    return read_tables(
        (path if path.is_dir() else path.with_suffix("")).resolve().name, tables, key, keys, unlabelled=unlabelled
    )


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.arrow") if not path.name.startswith(("cache-", "tmp", ".")))


def _by_split(paths: list[Path]) -> dict[str, Table]:
    """The files of each split by their names; files that name none are training."""
    found: dict[str, list[str]] = {}
    refuse_gaps(paths)
    for path in paths:
        # The cache puts the split last, after the data set's own name.
        words = re.sub(r"-\d+-of-\d+$", "", path.stem)
        part = split_of(re.split(r"[-_.]", words)[-1]) or split_in(words) or ""
        found.setdefault(part, []).append(str(path))
    named = {part: tuple(found[part]) for part in SPLITS if part in found}
    return named or {"train": tuple(found[""])}


def _saved(folder: Path) -> dict[str, Table]:
    """The files of each split of what `save_to_disk` wrote, in their order."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
        splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}
        files = {str(name): tuple(file["filename"] for file in rows.cache_files) for name, rows in splits.items()}
    except FAULTS as error:
        raise ValueError(
            f"{folder} is no whole folder of HF datasets' save_to_disk ({type(error).__name__}); save the set again."
        ) from error
    return dict(by_split(str(folder), files, f"give one of their folders, like {folder / next(iter(files))}"))


def _check(path: Path) -> None:
    """Refuse a file that is not what it should be before an image is looked for at a place that it names.

    Raises:
        ValueError: it is damaged or something else.
    """
    try:
        map_tables((str(path),)).validate(full=True)
    except (pa.ArrowException, OSError) as error:
        kind = what_it_is(path)
        seems = "" if kind == "of no known kind" else f"; it is {kind}"
        raise ValueError(
            f"{path} cannot be read as arrow ({type(error).__name__}){seems}; save the set again."
        ) from error
