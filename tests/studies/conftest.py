from pathlib import Path

import pytest

from tiny_study import write_tiny_study


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    """A study of two rows on the embedded digits, 60 of them, that trains in a second."""
    return write_tiny_study(tmp_path)
