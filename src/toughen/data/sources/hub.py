"""Data sets from the Hugging Face Hub, downloaded by HF `datasets` and decoded once.

A decoded copy in the cache is used without asking the Hub again, so a run on this machine sees the same images for as
long as the file is there; the file's name says which commit of the Hub's repository it was made from.

    data = load_hub("cifar10", "uoft-cs/cifar10")
    [file.name for file in cache.folder().glob("hub-cifar10-*.npz")]
    found = find_hub("svhn", "ufldl-stanford/svhn:cropped_digits")       # not decoded
"""

import contextlib
import hashlib
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

from toughen.data import cache
from toughen.data.base import ImageData
from toughen.data.decode import assemble
from toughen.data.files import by_split
from toughen.data.image_source import RawDataset
from toughen.data.sources.parquet import Table, read_tables

MISSING = ("RepositoryNotFoundError", "DatasetNotFoundError", "RevisionNotFoundError")


def load_hub(name: str, repository: str, *, kind: str = "") -> ImageData:
    """A data set of the Hub, from the cache or by download.

    Args:
        name: what it is called here and in the cache.
        repository: its name on the Hub, "owner/name" or "owner/name:configuration".
        kind: what it is called in the cache instead, without hyphens.

    Returns:
        The decoded data, with nothing set aside.

    Raises:
        ValueError: the Hub cannot be reached, there is no such data set, it may not be read without permission, or
            what it holds cannot be read.
    """
    kind = f"hub-{kind or name}"
    for path in sorted(cache.folder().glob(f"{kind}-*.npz")):
        if (data := cache.read(path, name)) is not None:
            return data
    commit, found = _found(name, repository)
    return cache.write(cache.entry(kind, commit), assemble(found))


def is_cached(kind: str) -> bool:
    """Whether a data set of the Hub lies decoded in the cache."""
    return any(cache.folder().glob(f"hub-{kind}-*.npz"))


def find_hub(name: str, repository: str, *, part: str = "", unlabelled: bool = False) -> RawDataset:
    """What a data set of the Hub holds, downloaded and not decoded.

    Args:
        name: what it is called here.
        repository: as for `load_hub`.
        part: which of its splits to take for training, and no other; "" takes those that are called like splits.
        unlabelled: whether a column of labels may be missing; they are -1 then.

    Raises:
        ValueError: as for `load_hub`.
    """
    return _found(name, repository, part, unlabelled=unlabelled)[1]


def kind_of(repository: str) -> str:
    """What any data set of the Hub is called in the cache: no other one's name begins with it and a hyphen."""
    mark = hashlib.sha256(repository.encode()).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9]', '_', repository)}_{mark}"


def _found(name: str, repository: str, part: str = "", *, unlabelled: bool = False) -> tuple[str, RawDataset]:
    """The commit, and what `find_hub` gives."""
    with _explained(repository), _quiet():
        commit, splits = _download(repository)
    alone = part if part in splits else next(iter(splits)) if len(splits) == 1 else None
    if alone is None:
        remedy = "download it and give a folder with train-*.parquet"
        chosen = by_split(f"{repository} on the Hugging Face Hub", splits, remedy)
    else:
        # A single split can be trained on, whatever it is called.
        chosen = {"train": splits[alone]}
    key = hashlib.sha256(f"{repository}@{commit}/{part}".encode()).hexdigest()
    return commit, read_tables(name, chosen, key, unlabelled=unlabelled)


def _download(repository: str) -> tuple[str, dict[str, Table]]:
    """The commit and the splits, which HF `datasets` holds in arrow files on this machine."""
    import datasets
    import huggingface_hub.constants as hub

    path, _, configuration = repository.partition(":")
    if not hub.HF_HUB_OFFLINE:
        _ask(f"{hub.ENDPOINT}/api/datasets/{path}")
    builder = datasets.load_dataset_builder(path, configuration or None)
    builder.download_and_prepare()
    splits = builder.as_dataset()
    assert isinstance(splits, datasets.DatasetDict)
    tables = {
        str(part): tuple(file["filename"] for file in rows.cache_files) or rows.data.table
        for part, rows in splits.items()
    }
    return str(builder.hash), tables


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """What goes wrong on the way to the Hub, as one sentence."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    path, _, configuration = repository.partition(":")
    # What the Hub's client lets through of its HTTP library's, whose name has changed once: its own error's bases.
    network_errors = tuple(
        kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind.__module__.startswith("httpx")
    )
    try:
        yield
    except (OSError, *network_errors) as error:
        chain = list(_causes(error))
        kinds = {type(cause).__name__ for cause in chain}
        responses = [getattr(cause, "response", None) for cause in chain]
        statuses = {getattr(said, "status_code", getattr(said, "code", None)) for said in [*responses, *chain]}
        if "GatedRepoError" in kinds or any("gated" in str(cause) for cause in chain):
            problem = (
                f"{path} on the Hugging Face Hub may be read only by those who accept its terms; accept them there, "
                "log in with `hf auth login`"
            )
        elif kinds & set(MISSING) or statuses & {401, 403, 404}:
            problem = (
                f"There is no data set {path} on the Hugging Face Hub, or it is private; check the spelling, log in "
                "with `hf auth login`"
            )
        elif "DataFilesNotFoundError" in kinds:
            problem = f"{path} on the Hugging Face Hub holds no files that HF datasets reads; convert them"
        else:
            problem = (
                f"{repository} cannot be reached on the Hugging Face Hub ({type(error).__name__}); connect to the "
                "network"
            )
        raise ValueError(
            f"{problem}, or give data=PATH with a folder that holds its train-*.parquet and test-*.parquet."
        ) from error
    except ValueError as error:
        brief = str(error).partition("\n")[0].strip().rstrip(".").replace(". ", "; ")
        wanted = "another configuration" if configuration else "a configuration, like hub:owner/name:configuration"
        raise ValueError(f"{path} cannot be read from the Hugging Face Hub ({brief}); give {wanted}.") from error
    # RuntimeError is what HF `datasets` raises for a data set that comes with a program to read it.
    except (RuntimeError, DatasetsError) as error:
        raise ValueError(
            f"{path} cannot be read by HF datasets ({type(error).__name__}); download it and give data=PATH with a "
            "folder."
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _ask(address: str) -> None:
    # The Hub's client retries a dead network for half a minute; a name that does not resolve is known at once.
    try:
        urllib.request.urlopen(address, timeout=20).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of HF `datasets` and the warnings of its client."""
    import datasets
    from huggingface_hub.utils import logging

    shown, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()
