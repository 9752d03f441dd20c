"""What an error has to be: one sentence."""

from collections.abc import Callable
from typing import Any

import pytest


def one_sentence(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """What a call says that must raise a ValueError of one sentence."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert ". " not in text
    assert text.endswith(".")
    return text
