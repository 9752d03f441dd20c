"""Images in the columns of tables: in memory, or in arrow files that each process maps for itself.

images = TableImages(table.column("image"), "the train split of pets")
images.open(17)
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image

from toughen.data.files import open_image


@dataclass(frozen=True, eq=False)
class TableImages:
    """Images in a column in memory.

    Args:
        column: their encoded bytes, or structs of bytes and path, as HF `datasets` has them.
        where: what the column is called in messages.
        files: whether a path without bytes is a file to read.
    """

    column: pa.ChunkedArray
    where: str
    files: bool = False

    def __len__(self) -> int:
        return len(self.column)

    @property
    def sources(self) -> tuple[str, ...]:
        """None: the bytes are in memory."""
        return ()

    def open(self, number: int) -> Image.Image:
        """One image, its header read."""
        return open_image(self._content(number))

    def name(self, number: int) -> str:
        """Its place."""
        return f"Example {number} of {self.where}"

    def _content(self, number: int) -> bytes | memoryview:
        cell = self.column[number]
        content = cell["bytes"] if cell.is_valid and pa.types.is_struct(cell.type) else cell
        if content.is_valid and (buffer := content.as_buffer()):
            return memoryview(buffer)
        path = cell["path"].as_py() if self.files and cell.is_valid and pa.types.is_struct(cell.type) else None
        if not path:
            raise ValueError(f"{self.name(number)} holds no image; give files that hold the images themselves.")
        return Path(path).read_bytes()


@dataclass(frozen=True, eq=False)
class MappedImages:
    """Images in a column of arrow files.

    Args:
        paths: files of arrow's streaming format, as HF `datasets` writes them.
        name_of_column: the column.
        where: what it is called in messages.
        length: how many images there are.
        files: whether a path without bytes is a file to read.
    """

    paths: tuple[str, ...]
    name_of_column: str
    where: str
    length: int
    files: bool = False

    def __len__(self) -> int:
        return self.length

    @property
    def sources(self) -> tuple[str, ...]:
        """The arrow files."""
        return self.paths

    def open(self, number: int) -> Image.Image:
        """One image, its header read."""
        return TableImages(mapped(self.paths).column(self.name_of_column), self.where, self.files).open(number)

    def name(self, number: int) -> str:
        """Its place."""
        return f"Example {number} of {self.where}"


@functools.lru_cache(maxsize=16)
def mapped(paths: tuple[str, ...]) -> pa.Table:
    """The table of some arrow files, mapped into memory."""
    return pa.concat_tables(pa.ipc.open_stream(pa.memory_map(path)).read_all() for path in paths)
