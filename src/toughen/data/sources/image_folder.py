"""Images in folders that are called like their classes, with or without a level of train, val and test above.

    pets/cat/1.jpg  pets/dog/2.jpg                           # no splits: see `toughen.data.decode` for the test images
    pets/train/cat/1.jpg  pets/val/cat/7.jpg  pets/test/...  # any case; training, valid, validation, dev, testing too

Classes are numbered in the order of their folders' names as text, images likewise within a class. Folders inside a
class folder are looked into; links are followed; hidden files, thumbnails, and notes and tables (`files.HARMLESS`) are
skipped. Anything else that is no image is refused. A split whose images lie in no class folders takes their classes
from a table beside them (see `labels_table`); a test split without one has no labels. Images are taken as they lie in
the file: EXIF orientation is not applied, as in everybody's ImageNet training. (The ImageFolder of HF `datasets` has
other rules: it passes over what is no image, and calls a class like the innermost folder.)

    found = find_folder(Path("pets"))
    found.parts["train"].images.name(17)
"""

from pathlib import Path

import numpy as np

from toughen.data.files import IMAGES, files_keys, no_image, split_of, visible
from toughen.data.image_source import Collection, RawDataset
from toughen.data.sources.image_files import FileImages, holds_images, holds_images_within, images_in
from toughen.data.sources.labels_table import files_by_class, find_table, holds_table
from toughen.storage.limits import shown

GENERIC = ("images", "image", "imgs", "img", "data", "jpg", "jpeg", "png", "photos", "pictures", "raw")
"""What folders of images are called that are no classes."""


def find_folder(folder: Path) -> RawDataset:
    """The images in a folder of class folders.

    Raises:
        ValueError: there are no class folders, one is empty, something in them is no image, or two splits have other
            classes.
    """
    splits = {part: unwrapped(path) for part, path in split_folders(folder).items()} or {"train": folder}
    if folder not in splits.values() and all(map(_is_flat, splits.values())) and holds_table(folder):
        return find_table(folder)
    listed = {part: _by_class(folder, part, path) for part, path in splits.items()}
    first = next(part for part in ("train", "validation", "test") if part in listed)
    classes = tuple(listed[first])
    for part, files in listed.items():
        if strange := [name for name in files if name and name not in classes]:
            raise ValueError(
                f"{splits[part] / strange[0]} is a class that {splits[first]} does not have; give both the same "
                f"class folders ({shown(strange, 5)} not in training, which has {shown(classes, 5)})."
            )
    names = {part: tuple(name for files in by_class.values() for name in files) for part, by_class in listed.items()}
    all_files = {f"{part}/{name}": splits[part] / name for part, inside in names.items() for name in inside}
    key, keys = files_keys(all_files, "folder", classes)
    parts = {}
    for part, by_class in listed.items():
        numbers = [classes.index(name) if name else -1 for name in by_class]
        labels = np.repeat(numbers, [len(files) for files in by_class.values()])
        parts[part] = Collection(FileImages(str(splits[part]), names[part]), labels.astype(np.int64), keys[part])
    return RawDataset(folder.resolve().name, parts, classes, key)


def find_flat(folder: Path) -> RawDataset:
    """The images of a folder without class folders, as a pool of images without labels: all of them -1.

    Raises:
        ValueError: something in it is no image, or it is empty.
    """
    names = tuple(images_in(folder, folder))
    if not names:
        raise ValueError(f"{folder} holds no images; give a folder with some.")
    images = FileImages(str(folder), names)
    key = files_keys({name: folder / name for name in names}, "flat")[0]
    return RawDataset(folder.resolve().name, {"train": Collection(images, np.full(len(names), -1))}, (), key)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders inside that are called like splits and hold folders, by split; none where there are no such.

    Raises:
        ValueError: two are called like one split, or there is something else beside them.
    """
    inside = [path for path in visible(folder) if path.is_dir()]
    found: dict[str, Path] = {}
    for path in inside:
        part = split_of(path.name)
        if part in found:
            raise ValueError(f"{path} and {found[part]} are the same split ({part}); leave one of them there.")
        if part:
            found[part] = path
    # A class may be called train; then it holds images and not folders.
    if "train" in found:
        if not _holds_folders(found["train"]):
            return {}
    elif len(found) != len(inside) or not any(_holds_folders(path) for path in inside):
        return {}
    if strange := [path for path in visible(folder) if path not in found.values()]:
        raise ValueError(
            f"{strange[0]} lies beside the {'training folder ' if 'train' in found else 'folder '}"
            f"{found.get('train', next(iter(found.values())))}, but is no split; take it away, or call it val or test."
        )
    return {part: found[part] for part in ("train", "validation", "test") if part in found}


def unwrapped(folder: Path) -> Path:
    """The folder below that holds all, as `images` does where it lies alone; or the folder itself."""
    inside = [path for path in visible(folder) if path.is_dir()]
    alone = len(inside) == 1 and not holds_images(folder)
    if alone and sum(holds_images_within(path) for path in visible(inside[0]) if path.is_dir()) > 1:
        return unwrapped(inside[0])
    return folder


def _is_flat(folder: Path) -> bool:
    """Whether images lie in a folder, or in one that is called `images` or the like, and in no class folders."""
    inside = [path for path in visible(folder) if path.is_dir()]
    alone = len(inside) == 1 and inside[0].name.lower() in GENERIC and holds_images(inside[0])
    return alone or (not inside and holds_images(folder))


def _by_class(folder: Path, part: str, place: Path) -> dict[str, list[str]]:
    """By class, the paths of a part's images in its folder; by "" where they have no labels."""
    if place == folder or not _is_flat(place):
        return _classes_in(place)
    found = files_by_class(folder, part, place)
    if not found and part != "test":
        raise ValueError(
            f"{place} holds images but no class folders; put the images of each class into a folder of it, or write a "
            f"table {part}.csv of the columns filename and label into {folder}."
        )
    return found or {"": list(images_in(place, place))}


def _holds_folders(folder: Path) -> bool:
    return any(path.is_dir() for path in visible(folder))


def _classes_in(folder: Path) -> dict[str, list[str]]:
    """By class, the paths of its images in `folder`."""
    found = {}
    for path in visible(folder):
        if not path.is_dir():
            if path.name.lower().endswith(IMAGES):
                raise ValueError(
                    f"{path} lies beside the class folders; put it into that of its class or take it away."
                )
            raise no_image(path)
        found[path.name] = list(images_in(path, folder))
        if not found[path.name]:
            raise ValueError(f"The class folder {path} holds no image; remove it or put images into it.")
        below = [inner.name for inner in visible(path)]
        if len(below) > 1 and all(map(split_of, below)):
            raise ValueError(
                f"{path} holds {' and '.join(below)}, so that the splits lie below the classes; turn that round, as in "
                f"{folder / below[0] / path.name}."
            )
    if not found:
        raise ValueError(f"{folder} holds no class folders; give a folder with one folder of images for each class.")
    return found
