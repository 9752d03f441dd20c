"""Images that are a file each.

images = FileImages("pets", tuple(images_in(Path("pets"), Path("pets"))))
images.name(17)
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from toughen.data.files import IMAGES, harmless, no_image, open_image, unreadable


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images that are a file each.

    Args:
        folder: where they all are.
        files: their paths in it.
    """

    folder: str
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def sources(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(map(self.name, range(len(self))))

    def open(self, number: int) -> Image.Image:
        """One image, its header read."""
        # The whole file at once, because Pillow leaves the files of some formats open.
        return open_image(Path(self.name(number)).read_bytes())

    def name(self, number: int) -> str:
        """Its path."""
        return os.path.join(self.folder, self.files[number])


def holds_images(folder: Path) -> bool:
    """Whether images lie directly in a folder."""
    try:
        # Not a list of all: the folder of a class may hold a million.
        with os.scandir(folder) as entries:
            return any(
                entry.name.lower().endswith(IMAGES) and not entry.name.startswith(".") and not entry.is_dir()
                for entry in entries
            )
    except OSError as error:
        raise unreadable(folder, error) from error


def holds_images_within(folder: Path) -> bool:
    """Whether images lie in a folder, or in folders in it."""
    return holds_images(folder) or next(images_in(folder, folder, strict=False), None) is not None


def images_in(folder: Path, above: Path, *, strict: bool = True) -> Iterator[str]:
    """The images in a folder and in those in it, by their paths in the folder `above`, in order.

    Args:
        folder: where to look; links are followed.
        above: it or one above it.
        strict: whether what is no image is refused.

    Raises:
        ValueError: a folder cannot be read or is there twice, or something is no image.
    """
    seen: set[str] = set()

    def failed(error: OSError) -> None:
        raise unreadable(Path(error.filename), error)

    for place, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        if os.path.realpath(place) in seen:
            raise ValueError(f"{place} is a link to a folder that is in {folder} already; remove the link.")
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        inside = os.path.relpath(place, above)
        for name in sorted(files):
            if name.lower().endswith(IMAGES) and not name.startswith("."):
                yield os.path.normpath(os.path.join(inside, name))
            elif strict and not harmless(name):
                raise no_image(Path(place, name))
