"""Which kind of data lies at a path.

find_path(Path("pets"))                                  # class folders, parquet, shards, an .npz file, ...
"""

from pathlib import Path

from toughen.data.files import PICKLE, visible, what_it_is
from toughen.data.image_source import RawDataset
from toughen.data.sources import cifar_binary, cifar_pickle, image_folder, npz, npz_shards, parquet, webdataset
from toughen.errors import Command
from toughen.storage.limits import shown

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin")
"""Of files that are no images, whatever is in them."""


def find_path(path: Path, *, unlabelled: bool = False) -> RawDataset:
    """What a folder or file holds.

    Args:
        path: where the data are.
        unlabelled: whether labels may be missing, as in a pool of images or an extra set; they are -1 then.

    Raises:
        ValueError: there is nothing, or it is none of the forms that are read, or it is damaged; says what is wrong.
    """
    if not path.is_dir():
        return _find_file(path, unlabelled)
    if parquet.holds_parquet(path):
        return parquet.find_parquet(path, unlabelled=unlabelled)
    if cifar_binary.layout_of(path):
        return cifar_binary.find_binary(path)
    if cifar_pickle.layout_of(path):
        raise _to_import(path, "holds CIFAR's Python layout, which is made of pickles")
    if webdataset.holds_shards(path):
        return webdataset.find_shards(path, unlabelled=unlabelled)
    inside = visible(path)
    if not inside:
        raise ValueError(
            f"The folder {path} holds no train-*.parquet, no class folders of images and no shards; give a folder of "
            "data."
        )
    if all(entry.suffix == ".npz" for entry in inside):
        if npz_shards.together(inside):
            return npz_shards.find_shards(npz_shards.in_order(inside), path.resolve().name, unlabelled=unlabelled)
        raise ValueError(
            f"{path} holds {shown([entry.name for entry in inside], 3)}, of which each may be a data set; give one of "
            f"them or, where they are one together, {path / '*.npz'}."
        )
    if (
        len(inside) == 1
        and inside[0].is_dir()
        and (parquet.holds_parquet(inside[0]) or cifar_binary.layout_of(inside[0]))
    ):
        raise ValueError(f"The folder {path} has its data in {inside[0].name}; give {inside[0]}.")
    images, folders = image_folder.holds_images(path), any(entry.is_dir() for entry in inside)
    if not images and not folders and (pickles := cifar_pickle.pickles_in(path)):
        raise _to_import(pickles[0], f"is {PICKLE}")
    if images and not folders:
        if unlabelled:
            return image_folder.find_flat(path)
        raise ValueError(f"{path} holds images but no class folders; put the images of each class into a folder of it.")
    return image_folder.find_folder(path)


def _to_import(path: Path, what: str) -> ValueError:
    out = f"{path.stem if path.is_file() else path.name}.npz"
    return ValueError(
        f"{path} {what}, and read only once; run `{Command('import', path, out=out)}` and give {out} in its place."
    )


def _find_file(path: Path, unlabelled: bool) -> RawDataset:
    if not path.exists() and path.suffix.lower() == ".npz":
        raise ValueError(f"The file {path} does not exist; check the path.")
    if not path.exists():
        raise ValueError(
            f"The folder {path} does not exist; give a folder of class folders, of parquet files or of shards, or an "
            ".npz file."
        )
    if path.suffix.lower() == ".npz":
        return npz.find_npz(path, unlabelled=unlabelled)
    kind = what_it_is(path)
    if kind == PICKLE and path.suffix not in WEIGHTS:
        raise _to_import(path, f"is {kind}")
    packed = "archive" in kind or "compressed" in kind
    remedy = "unpack it and give the folder" if packed else "give one of those"
    if kind == "a parquet file":
        remedy = f"give the folder that holds it, {path.parent}"
    elif packed and webdataset.is_shard(path):
        first = "decompress it to a .tar, and " if kind != "a tar archive" else ""
        remedy = f"{first}give the folder that holds it, {path.parent}"
    raise ValueError(f"{path} is {kind}, but data are a folder or an .npz file; {remedy}.")
