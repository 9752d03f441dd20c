"""What is sent to a device leaves the host free, and may be changed at once."""

import pytest
import torch

import pretended
from toughen.devices import STAGED, sent

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("bytes_", [8, STAGED, STAGED + 4, 10 * STAGED])
def test_nothing_is_waited_for(bytes_: int) -> None:
    values = torch.arange(bytes_ // 4, dtype=torch.float32)
    with pretended.waits_of() as waits:
        there = sent(values, CUDA)
    assert dict(waits) == {}
    assert torch.equal(there.cpu(), values)


def test_what_is_pinned_may_be_changed_by_others_and_is_waited_for() -> None:
    with pretended.waits_of() as waits:
        sent(torch.zeros(4).pin_memory(), CUDA)
    assert [operation for operation, _ in waits] == ["copy to the device"]


def test_float64_is_sent_as_what_the_device_has() -> None:
    assert sent(torch.zeros(2, dtype=torch.float64), CUDA).dtype == torch.float64
    with pretended.only("mps"):
        assert sent(torch.zeros(2, dtype=torch.float64), torch.device("mps")).dtype == torch.float32
