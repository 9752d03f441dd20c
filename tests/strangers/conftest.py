from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test's cache would be, and is not yet."""
    monkeypatch.setenv("TOUGHEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 1,000 bytes were all that there is."""
    monkeypatch.setattr("toughen.data.decode.IN_MEMORY", 1000)
