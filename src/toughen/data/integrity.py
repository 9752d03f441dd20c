"""Whether all stored images can be decoded: found out before they are used, and remembered.

Every image is decoded once, a JPEG at an eighth of its size. Which images were found whole is kept in the cache, under
the key of what holds them; where that key is of names and sizes, when the files were last changed enters too. Images
without such files (see `ImageSource`) are looked at each time.

    for done, total in check_stored_images({"train": data.train, "test": data.test}):
        print(f"{done} of {total}")                  # ends with a ValueError that names the broken ones
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toughen.data import cache
from toughen.data.base import Examples
from toughen.data.files import BY_SIZE
from toughen.data.image_source import holds_pixels
from toughen.data.lazy_split import LazySplit
from toughen.errors import UsageError
from toughen.parallel.ranks import cores

BLOCK = 512
"""Images between two reports of progress."""

NAMED = 5
"""How many broken images are named."""

SECONDS = 30
"""After so many what is known so far is kept, so that a killed check goes on."""


def check_stored_images(splits: Mapping[str, Examples]) -> Iterator[tuple[int, int]]:
    """Decode each stored image that was not found whole before.

    Args:
        splits: by name; those with their pixels in memory are passed over.

    Yields:
        How many images are done, and of how many; nothing where all are known to be whole.

    Raises:
        ValueError: images are broken, or unlike the others where they are taken as they are: names the first five and
            says how many they are.
    """
    # Splits may be parts of one collection, and share what is known of it.
    records: dict[tuple[str, bool], IntegrityRecord] = {}
    works = []
    for split in splits.values():
        if isinstance(split, LazySplit) and not holds_pixels(split.encoded):
            collection = (split.key, split.view is None)
            record = records[collection] = records.get(collection) or _record(split)
            if len(places := record.unknown(split.rows)):
                works.append((split, record, places))
    faults: list[tuple[str, ValueError]] = []
    done, total = 0, sum(len(places) for _, _, places in works)
    kept = time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        for split, record, places in works:
            for block in places.split(BLOCK):
                found = list(pool.map(_fault, [split] * len(block), block.tolist()))
                record.note(split.rows[block[torch.tensor([not fault for fault in found])]])
                faults += [(split.name(int(place)), fault) for place, fault in zip(block, found, strict=True) if fault]
                done += len(block)
                if time.monotonic() - kept > SECONDS:
                    record.keep()
                    kept = time.monotonic()
                yield done, total
            record.keep()
    if faults:
        raise faults[0][1] if len(faults) == 1 else _together(faults)


def _fault(split: LazySplit, place: int) -> ValueError | None:
    try:
        split.check(place)
    except ValueError as error:
        return error
    return None


def _together(faults: list[tuple[str, ValueError]]) -> UsageError:
    names = ", ".join(name for name, _ in faults[:NAMED])
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    clauses = [str(fault).removeprefix("DA412 ").removeprefix(name).strip() for name, fault in faults]
    which = "each" if len(set(clauses)) == 1 else "the first"
    said, *rest = UsageError(faults[0][1]).args
    said = said.removeprefix("DA412 ").removeprefix(faults[0][0]).lstrip()
    return UsageError(f"DA412 {len(faults)} images cannot be used ({names}{more}): {which} {said}", *rest)


@dataclass(frozen=True, eq=False)
class IntegrityRecord:
    """Which images of a collection were found whole.

    Args:
        path: where that is kept; None where it is not.
        whole: (N,) bool, of every image of the collection.
    """

    path: Path | None
    whole: np.ndarray

    def unknown(self, rows: Tensor) -> Tensor:
        """The places in `rows` of images that are not known to be whole."""
        return torch.from_numpy(~self.whole[rows.numpy()]).nonzero().flatten()

    def note(self, rows: Tensor) -> None:
        """These are whole."""
        self.whole[rows.numpy()] = True

    def keep(self) -> None:
        """Write it to the cache, with what another process may have found meanwhile."""
        if self.path:
            cache.write_arrays(self.path, marks=self.whole | _marks(self.path, len(self.whole)))


def _record(split: LazySplit) -> IntegrityRecord:
    """What is known of the images that a split is of."""
    n = len(split.encoded)
    sources: tuple[str, ...] | None = getattr(split.encoded, "sources", None)
    if sources is None:
        return IntegrityRecord(None, np.zeros(n, bool))
    # Images that are taken as they are must be alike too, which a view does not ask.
    digest = hashlib.sha256(f"{split.key} {split.view is None} {n}".encode())
    if split.key.startswith(BY_SIZE):
        with ThreadPoolExecutor(8) as pool:
            for changed in pool.map(_changed, sources):
                digest.update(f"{changed};".encode())
    path = cache.entry("whole", digest.hexdigest())
    return IntegrityRecord(path, _marks(path, n))


def _marks(path: Path, n: int) -> np.ndarray:
    known = cache.read_array(path, "marks", np.bool_, 1)
    return known if known is not None and len(known) == n else np.zeros(n, bool)


def _changed(source: str) -> int:
    # What is not there is found when it is decoded.
    with contextlib.suppress(OSError):
        return os.stat(source).st_mtime_ns
    return 0
