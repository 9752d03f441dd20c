"""Images in a column of a table: in memory, or in arrow files that each process maps for itself.

images = TableImages(table, "image", "the train split of pets")
images.open(17)

(The Image feature of HF `datasets` decodes all pixels at once, which rules out a JPEG's draft, and turns by EXIF data.)
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image

from toughen.data.files import open_image


@dataclass(frozen=True, eq=False)
class TableImages:
    """Images in a column of a table.

    Args:
        table: the table, or the arrow files that hold it, as HF `datasets` writes them. A path without bytes in such
            files is a file to read.
        column: the name of the column: encoded bytes, or structs of bytes and path, as HF `datasets` has them.
        where: what the images are called in messages.
    """

    table: pa.Table | tuple[str, ...]
    column: str
    where: str

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def sources(self) -> tuple[str, ...]:
        """The arrow files; none where the bytes are in memory."""
        return self.table if isinstance(self.table, tuple) else ()

    def open(self, number: int) -> Image.Image:
        """One image, its header read."""
        cell = self._cells[number]
        struct = cell.is_valid and pa.types.is_struct(cell.type)
        content = cell["bytes"] if struct else cell
        if content.is_valid and (buffer := content.as_buffer()):
            return open_image(memoryview(buffer))
        if not (path := cell["path"].as_py() if struct and self.sources else None):
            raise ValueError(f"{self.name(number)} holds no image; give files that hold the images themselves.")
        if not Path(path).is_file():
            raise ValueError(f"{self.name(number)} is the file {path}, which is not there; restore it.")
        return open_image(Path(path).read_bytes())

    def name(self, number: int) -> str:
        """Its place."""
        return f"Example {number} of {self.where}"

    @property
    def _cells(self) -> pa.ChunkedArray:
        return (map_tables(self.table) if isinstance(self.table, tuple) else self.table).column(self.column)


@functools.lru_cache(maxsize=16)
def map_tables(paths: tuple[str, ...]) -> pa.Table:
    """The table of some arrow files, of arrow's streaming or its file format, mapped into memory."""
    return pa.concat_tables(_mapped(path) for path in paths)


def _mapped(path: str) -> pa.Table:
    source = pa.memory_map(path)
    opened = pa.ipc.open_file if source.read(6) == b"ARROW1" else pa.ipc.open_stream
    source.seek(0)
    return opened(source).read_all()
