import pytest

import sentences


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache for each test, empty at first."""
    monkeypatch.setenv("TOUGHEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def one_sentence():
    """Runs a call that must raise a ValueError of one sentence, and returns the sentence."""
    return sentences.one_sentence
