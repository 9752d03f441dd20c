"""Images in folders that are called like their classes, with or without a level of train, val and test above.

    pets/cat/1.jpg  pets/dog/2.jpg                           # no splits: see `toughen.data.decode` for the test images
    pets/train/cat/1.jpg  pets/val/cat/7.jpg  pets/test/...  # any case; training, valid, validation, dev, testing too

Classes are numbered in the order of their folders' names as text, images likewise within a class. Folders inside a
class folder are looked into; links are followed; hidden files, thumbnails, and .txt, .md, .csv, .json and .parquet
files are skipped. Anything else that is no image is refused. Images are taken as they lie in the file: EXIF orientation
is not applied, as in everybody's ImageNet training. (The ImageFolder of HF `datasets` has other rules: it passes over
what is no image, and calls a class like the innermost folder.)

    found = find_folder(Path("pets"))
    found.parts["train"].images.name(17)
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from toughen.data.files import IMAGES, files_keys, harmless, open_image, split_of, unreadable, visible
from toughen.data.image_source import Collection, RawDataset
from toughen.storage.limits import shown


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


def find_folder(folder: Path) -> RawDataset:
    """The images in a folder of class folders.

    Raises:
        ValueError: there are no class folders, one is empty, something in them is no image, or two splits have other
            classes.
    """
    splits = split_folders(folder) or {"train": folder}
    listed = {part: _classes_in(path) for part, path in splits.items()}
    classes = tuple(listed["train"])
    for part, files in listed.items():
        if strange := [name for name in files if name not in classes]:
            raise ValueError(
                f"{splits[part] / strange[0]} is a class that {splits['train']} does not have; give both the same "
                f"class folders ({shown(strange, 5)} not in training, which has {shown(classes, 5)})."
            )
    names = {part: tuple(name for files in by_class.values() for name in files) for part, by_class in listed.items()}
    all_files = {f"{part}/{name}": splits[part] / name for part, inside in names.items() for name in inside}
    key, keys = files_keys(all_files, "folder", classes)
    parts = {}
    for part, by_class in listed.items():
        labels = np.repeat([classes.index(name) for name in by_class], [len(files) for files in by_class.values()])
        parts[part] = Collection(FileImages(str(splits[part]), names[part]), labels.astype(np.int64), keys[part])
    return RawDataset(folder.resolve().name, parts, classes, key)


def find_flat(folder: Path) -> RawDataset:
    """The images of a folder without class folders, as a pool of images without labels: all of them -1.

    Raises:
        ValueError: something in it is no image, or it is empty.
    """
    names = tuple(_images_in(folder, folder))
    if not names:
        raise ValueError(f"{folder} holds no images; give a folder with some.")
    images = FileImages(str(folder), names)
    key = files_keys({name: folder / name for name in names}, "flat")[0]
    return RawDataset(folder.resolve().name, {"train": Collection(images, np.full(len(names), -1))}, (), key)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders inside that are called like splits, by split; none where there is no training folder among them.

    Raises:
        ValueError: two are called like one split, there are others beside them, or there are only others than training.
    """
    inside = [path for path in visible(folder) if path.is_dir()]
    found: dict[str, Path] = {}
    for path in inside:
        part = split_of(path.name)
        if part in found:
            raise ValueError(f"{path} and {found[part]} are the same split ({part}); leave one of them there.")
        if part:
            found[part] = path
    if found and "train" not in found and len(found) == len(inside) and any(_holds_folders(path) for path in inside):
        raise ValueError(
            f"{folder} holds {' and '.join(path.name for path in found.values())}, which is no class but a split, and "
            "no training images; put them beside it, in a folder train with the same class folders."
        )
    # A class may be called train; then it holds images and not folders.
    if "train" not in found or not _holds_folders(found["train"]):
        return {}
    if strange := [path for path in visible(folder) if path not in found.values()]:
        raise ValueError(
            f"{strange[0]} lies beside the training folder {found['train']}, but is no split; take it away, or call it "
            "val or test."
        )
    return {part: found[part] for part in ("train", "validation", "test") if part in found}


def holds_images(folder: Path) -> bool:
    """Whether images lie directly in a folder."""
    return any(path.name.lower().endswith(IMAGES) for path in visible(folder) if not path.is_dir())


def holds_images_within(folder: Path) -> bool:
    """Whether images lie in a folder, or in folders in it."""
    return holds_images(folder) or any(
        name.lower().endswith(IMAGES)
        for path in visible(folder)
        if path.is_dir()
        for _, _, files in os.walk(path, followlinks=True)
        for name in files
    )


def _holds_folders(folder: Path) -> bool:
    return any(path.is_dir() for path in visible(folder))


def _classes_in(folder: Path) -> dict[str, list[str]]:
    """By class, the paths of its images in `folder`."""
    found = {}
    for path in visible(folder):
        if not path.is_dir():
            raise ValueError(f"{path} lies beside the class folders; put it into one of them or take it away.")
        found[path.name] = list(_images_in(path, folder))
        if not found[path.name]:
            raise ValueError(f"The class folder {path} holds no image; remove it or put images into it.")
    if not found:
        raise ValueError(f"{folder} holds no class folders; give a folder with one folder of images for each class.")
    return found


def _images_in(folder: Path, above: Path) -> Iterator[str]:
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
            elif not harmless(name):
                file = os.path.join(place, name)
                raise ValueError(f"{file} is no image ({', '.join(IMAGES[:4])}, ...); take it out of the folder.")
