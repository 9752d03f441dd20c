"""Named data sets from the Hugging Face Hub, downloaded by HF `datasets` and decoded once.

A decoded copy in the cache is used without asking the Hub again, so a run on this machine sees the same images for as
long as the file is there; the file's name says which commit of the Hub's repository it was made from.

    data = load_hub("cifar10", "uoft-cs/cifar10")
    [file.name for file in cache.folder().glob("hub-cifar10-*.npz")]
"""

import contextlib
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

from toughen.data import cache
from toughen.data.base import ImageData
from toughen.data.parquet import Table, decode


def load_hub(name: str, repository: str) -> ImageData:
    """A data set of the Hub, from the cache or by download.

    Args:
        name: what it is called here and in the cache.
        repository: its name on the Hub, "owner/name".

    Returns:
        The decoded data.

    Raises:
        ValueError: the Hub cannot be reached, or what it holds cannot be read.
    """
    for path in sorted(cache.folder().glob(f"hub-{name}-*.npz")):
        if (data := cache.read(path, name)) is not None:
            return data
    try:
        with _quiet():
            commit, tables = _download(repository)
    except OSError as error:
        raise ValueError(
            f"{name} cannot be reached on the Hugging Face Hub ({repository}: {type(error).__name__}); connect to the "
            "network, or give data=PATH with a folder that holds its train-*.parquet and test-*.parquet."
        ) from error
    return cache.write(cache.entry(f"hub-{name}", commit), decode(name, tables))


def _download(repository: str) -> tuple[str, Mapping[str, Table]]:
    import datasets
    import huggingface_hub.constants as hub

    if not hub.HF_HUB_OFFLINE:
        _ask(f"{hub.ENDPOINT}/api/datasets/{repository}")
    builder = datasets.load_dataset_builder(repository)
    builder.download_and_prepare()
    splits = builder.as_dataset()
    assert isinstance(splits, datasets.DatasetDict)
    return str(builder.hash), {str(part): (split.features, split.data.table) for part, split in splits.items()}


def _ask(address: str) -> None:
    # The Hub's client retries a dead network for half a minute; a name that does not resolve is known at once.
    try:
        urllib.request.urlopen(address, timeout=20).close()
    except urllib.error.HTTPError as error:
        error.close()
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
