import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache for each test, empty at first."""
    monkeypatch.setenv("TOUGHEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def one_sentence():
    """Runs a call that must raise a ValueError of one sentence, and returns the sentence."""

    def check(call, *args, **kwargs) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call(*args, **kwargs)
        text = str(caught.value)
        assert "\n" not in text
        assert ". " not in text
        assert text.endswith(".")
        return text

    return check
