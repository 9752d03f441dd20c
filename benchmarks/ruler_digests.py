"""What `ruler.py` compares: SHA-256 over files and values in a form in which only what a program did shows.

    digests = Digests(keep=Path("canonical"))
    digests.add("attacks/pgd", tensor_bytes(x_adv))
    digests.folder("methods/free", Path("runs/free"))
    digests.found                                        # {"attacks/pgd": "3f...", "methods/free/metrics.jsonl": ...}

Tensors and tables are read by their values, JSON by its keys in order, and what the clock, the machine or a version
says is left out by name. Prose for people has digests of its own, whose keys end in `(words)`: a message may be put
better while every number stays.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from safetensors import safe_open
from torch import Tensor

WORDS = " (words)"

LEFT_OUT = {
    # of the clock and of how much memory there was
    *("seconds", "minutes", "timing", "time", "images_per_second", "peak_memory_bytes", "created"),
    # of the machine and the versions, which stand once in the ruler's own output
    *("torch", "version", "versions", "toughen", "device", "threads"),
    # hashes of files that hold any of these
    *("checkpoint_sha256", "files"),
}
"""Keys of JSON objects and columns of CSV files that are not compared."""

PROSE = {"message", "remedy", "notes", "not_checked", "evidence", "title", "note", "warning", "error", "reason"}
"""Keys of JSON objects whose texts are for people."""

SKIPPED = {"MANIFEST.json", "timing.jsonl", "workers.log"}
"""Files of hashes over clocks, and of clocks."""

_HASH = re.compile("[0-9a-f]{64}")
_MEASURED = re.compile(
    r"\d[\d,.]*(?=(?:&nbsp;|\s)?(?:s|ms|min|minutes?|h|hours?|[KMG]iB|bytes|images/s|\(median of the log\))(?!\w))"
    r"|\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?"
)
_RULES = re.compile(r"[\s\u2500-\u257f]+")


def tensor_bytes(tensor: Tensor | np.ndarray) -> bytes:
    """Type, shape and bytes."""
    array = tensor.detach().cpu().contiguous().numpy() if isinstance(tensor, Tensor) else np.ascontiguousarray(tensor)
    return f"{array.dtype} {array.shape}\n".encode() + array.tobytes() + b"\n"


def anywhere(text: str) -> str:
    """Text without the name of the folder that it was written in."""
    return text.replace(str(Path.cwd()), ".")


def plain(text: str) -> str:
    """Text without what was measured, dates, the lines of tables and the width of their columns."""
    lines = (_RULES.sub(" ", line).strip() for line in anywhere(text).splitlines())
    return "\n".join(_MEASURED.sub("#", line) for line in lines if line) + "\n"


def parted(value: Any, key: str = "") -> tuple[Any, list[str]]:
    """A JSON value without what is left out, and the prose that was in it.

    The hash of a model over its classes' names stands with the prose: a class may be renamed.
    """
    if key in PROSE and isinstance(value, str | list):
        return "words", [str(value)]
    if key in ("model", "scorer", "labeller") and isinstance(value, str) and _HASH.fullmatch(value):
        return "hash", [value]
    if isinstance(value, dict):
        inner = {name: parted(item, name) for name, item in value.items() if name not in LEFT_OUT}
        return {name: item for name, (item, _) in inner.items()}, [t for _, said in inner.values() for t in said]
    if isinstance(value, list):
        items = [parted(item) for item in value]
        return [item for item, _ in items], [text for _, said in items for text in said]
    return value, []


def _json(texts: Iterable[str]) -> tuple[bytes, str]:
    numbers, words = zip(*(parted(json.loads(text)) for text in texts), strict=True)
    text = "\n".join(json.dumps(value, sort_keys=True, indent=1) for value in numbers)
    return text.encode(), "\n".join(said for some in words for said in some)


def _safetensors(path: Path) -> bytes:
    with safe_open(path, framework="pt") as file:
        tensors = [name.encode() + b" " + tensor_bytes(file.get_tensor(name)) for name in sorted(file.keys())]
        return json.dumps(file.metadata(), sort_keys=True).encode() + b"\n" + b"".join(tensors)


def _npz(path: Path) -> bytes:
    with np.load(path, allow_pickle=False) as file:
        return b"".join(name.encode() + b" " + tensor_bytes(file[name]) for name in sorted(file))


def _parquet(path: Path) -> bytes:
    table = pq.read_table(path)
    columns = (f"{field.name} {field.type} {table[field.name].to_pylist()!r}\n" for field in table.schema)
    return "".join(columns).encode()


def _csv(path: Path) -> bytes:
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    kept = [place for place, name in enumerate(rows[0]) if name not in LEFT_OUT] if rows else []
    lines = (",".join(row[place] for place in kept if place < len(row)) for row in rows)
    return plain("\n".join(lines)).encode()


def _yaml(path: Path) -> bytes:
    # A recipe names the files that it was given in full.
    return anywhere(path.read_text(encoding="utf-8")).encode()


def _picture(path: Path) -> bytes:
    with Image.open(path) as picture:
        return tensor_bytes(np.asarray(picture))


READERS: Mapping[str, Callable[[Path], bytes]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".parquet": _parquet,
    ".csv": _csv,
    ".yaml": _yaml,
    ".png": _picture,
}
JSON = {".json", ".jsonl"}
TEXTS = {".html", ".md", ".svg"}


class Digests:
    """Digests by a readable path.

    Args:
        keep: where the bytes under each digest are written too, for those that differ to be compared; None for nowhere.
    """

    def __init__(self, keep: Path | None = None) -> None:
        self.found: dict[str, str] = {}
        self._keep = keep

    def add(self, key: str, data: bytes) -> None:
        """The digest of some bytes."""
        assert key not in self.found, key
        self.found[key] = hashlib.sha256(data).hexdigest()
        if self._keep is not None:
            path = self._keep / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def words(self, key: str, text: str) -> None:
        """The digest of prose."""
        self.add(key + WORDS, plain(text).encode())

    def file(self, key: str, path: Path) -> None:
        """A file by its values."""
        if path.suffix in JSON:
            text = anywhere(path.read_text(encoding="utf-8"))
            numbers, words = _json(text.splitlines() if path.suffix == ".jsonl" else [text])
            self.add(key, numbers)
            if words:
                self.words(key, words)
        elif path.suffix in TEXTS:
            self.words(key, path.read_text(encoding="utf-8"))
        else:
            self.add(key, READERS.get(path.suffix, Path.read_bytes)(path))

    def folder(self, key: str, folder: Path) -> None:
        """Every file below a folder, what a killed writer left among them, but for locks and what the clock fills."""
        for path in sorted(folder.rglob("*")):
            locks = path.name.startswith(".lock") or path.suffix == ".lock"
            if path.is_file() and not locks and path.name not in SKIPPED:
                self.file(f"{key}/{path.relative_to(folder).as_posix()}", path)
