"""The pretended devices behave as real ones do, where a fault of ours could show."""

import os

import pytest
import torch
from torch import nn

import pretended

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x, host: x + host,
        lambda x, host: host + x,
        lambda x, host: x.add_(host),
        lambda x, host: host.add_(x),
        lambda x, host: host[x.long()],
        lambda x, host: torch.where(x > 0, x, host),
        lambda x, host: x @ host,
        lambda x, host: torch.cat([x, host]),
        lambda x, host: x + x.to("cuda:1"),
        lambda x, host: nn.functional.linear(x, host),
        lambda x, host: host.sum().add_(x.sum()),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mixed) -> None:
    with pytest.raises(RuntimeError, match=r"same device|at least two devices|either on cpu"):
        mixed(torch.rand(3, 3, device=CUDA), torch.rand(3, 3))


def test_numbers_of_the_host_are_taken() -> None:
    x, number = torch.rand(3, device=CUDA), torch.tensor(2.0)
    assert torch.equal((x * number).cpu(), x.cpu() * 2)
    assert torch.equal(torch.where(x > 0, x, number).cpu(), x.cpu())


def test_what_the_host_waits_for_is_told() -> None:
    x = torch.arange(6.0, device=CUDA).view(2, 3)
    mask, host = x > 2, torch.tensor([1])

    def waits(act) -> list[str]:
        with pretended.waits_of() as found:
            act()
        return sorted(operation for operation, _ in found.elements())

    assert waits(lambda: x.sum().item()) == ["_local_scalar_dense"]
    assert waits(lambda: bool(mask.any())) == ["_local_scalar_dense"]
    assert waits(lambda: x[mask]) == ["index by mask"]
    assert waits(lambda: x.cpu()) == ["copy to the host"]
    assert waits(lambda: host.to(CUDA)) == ["copy to the device"]
    assert waits(lambda: torch.tensor(3.0, device=CUDA)) == ["copy to the device"]
    assert waits(lambda: x[host]) == ["index by a tensor of the host"]
    assert waits(lambda: x.cpu().tolist()) == ["copy to the host"]
    assert waits(lambda: x.nonzero()) == ["nonzero"]
    assert waits(torch.cuda.synchronize) == ["synchronize"]
    assert waits(lambda: x.__setitem__(mask, torch.arange(3.0, device=CUDA))) == ["_index_put_impl_ by mask"]
    assert waits(lambda: x.to("cpu", non_blocking=True)) == ["copy to the host that nothing waits for"]
    large = torch.zeros(20_000)
    assert waits(lambda: large.to(CUDA, non_blocking=True)) == ["copy to the device from pageable memory"]
    # Nothing is waited for:
    assert waits(lambda: large.pin_memory().to(CUDA, non_blocking=True)) == []
    assert waits(lambda: x.__setitem__(mask, 0.0)) == []
    assert waits(lambda: host.to(CUDA, non_blocking=True)) == []
    assert waits(lambda: torch.zeros(3, device=CUDA).fill_(1)) == []
    assert waits(lambda: torch.where(mask, x, 0)[:, 1].mul_(2)) == []


def test_float64_is_refused_by_mps_alone() -> None:
    assert torch.zeros(2, dtype=torch.float64, device=CUDA).dtype == torch.float64
    with pretended.only("mps"):
        for make in (
            lambda: torch.zeros(2, dtype=torch.float64, device="mps"),
            lambda: torch.zeros(2, device="mps").double(),
        ):
            with pytest.raises(TypeError, match="float64"):
                make()


def test_one_kind_is_there_at_a_time() -> None:
    assert (torch.cuda.is_available(), torch.backends.mps.is_available(), torch.xpu.is_available()) == (
        True,
        False,
        False,
    )
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    with pretended.only("mps"):
        assert (torch.cuda.is_available(), torch.backends.mps.is_available(), torch.xpu.is_available()) == (
            False,
            True,
            False,
        )
        assert torch.accelerator.current_accelerator() == torch.device("mps")


def test_a_generator_belongs_to_its_device() -> None:
    draw = [torch.rand(4, device=CUDA, generator=torch.Generator(CUDA).manual_seed(3)) for _ in range(2)]
    assert torch.equal(draw[0], draw[1])
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(4, device=CUDA, generator=torch.Generator())
    torch.cuda.manual_seed_all(1)
    before, host = torch.cuda.get_rng_state(), torch.get_rng_state()
    # Dropout draws without being given a generator.
    nn.functional.dropout(torch.ones(8, device=CUDA))
    assert not torch.equal(before, torch.cuda.get_rng_state())
    assert torch.equal(host, torch.get_rng_state())


def test_memory_has_an_end() -> None:
    held = torch.cuda.memory_allocated()
    x = torch.zeros(1000, device=CUDA)
    assert torch.cuda.memory_allocated() == held + 4000
    with pretended.limit(10_000), pytest.raises(torch.OutOfMemoryError):
        x.repeat(3)
    del x
    assert torch.cuda.memory_allocated() == held


def test_autograd_and_autocast_are_torchs_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    x = torch.rand(2, 3, 8, 8)
    net(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    net.to(CUDA)
    net(x.to(CUDA)).square().sum().backward()
    for parameter, grad in zip(net.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.device == CUDA
        torch.testing.assert_close(parameter.grad.cpu(), grad, rtol=1e-4, atol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        assert net(x.to(CUDA)).dtype == torch.bfloat16


def test_a_forked_child_may_not_touch_the_device() -> None:
    torch.zeros(1, device=CUDA)
    heard, to = os.pipe()
    if (child := os.fork()) == 0:
        try:
            torch.zeros(1, device=CUDA)
            os.write(to, b"taken")
        except RuntimeError as error:
            os.write(to, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"Cannot re-initialize CUDA in forked subprocess" in os.read(heard, 10_000)
