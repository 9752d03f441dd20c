"""Tests on accelerators that are not there (`pretended`): in a process of their own, `make test-gpu`."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))

import pretended  # noqa: E402

os.environ["OMP_NUM_THREADS"] = "1"


def _asked(config: pytest.Config) -> bool:
    """Whether these tests were asked for by name: any other tests import torch as it is."""
    return bool(config.args) and all(
        HERE in (path := Path(str(arg).partition("::")[0]).resolve()).parents or path == HERE for arg in config.args
    )


def pytest_configure(config: pytest.Config) -> None:
    if _asked(config) and not pretended.missing():
        pretended.begin(Path(os.environ.get("PRETENDED", HERE / ".compiled")))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if _asked(config) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = pretended.missing()
    for item in items if why else ():
        # All of a session's are given.
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(f"no accelerator can be pretended: {why}"))
