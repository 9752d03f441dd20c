"""torch's switches for products of float32 numbers: put one way inside, and afterwards what they were, each of them."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from toughen.modes import backends, float32
from toughen.precision import BACKENDS, OPERATIONS, TOP, Switch

OLD: dict[str, Callable[[], Any]] = {
    "cudnn": torch._C._get_cudnn_allow_tf32,
    "cublas": torch._C._get_cublas_allow_tf32,
    "matmul": torch.get_float32_matmul_precision,
}
get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter


def old() -> dict[str, Any]:
    """What the old switches read, or that they cannot be read."""
    found: dict[str, Any] = {}
    for name, read in OLD.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "raises"
    return found


def new() -> dict[Switch, str]:
    return {switch: get(*switch) for switch in (TOP, *BACKENDS, *OPERATIONS)}


def alone() -> tuple[dict[Switch, str], dict[str, Any]]:
    """What each operation, and each old switch, reads with nothing above; changes the state."""
    for switch in (TOP, *BACKENDS):
        put(*switch, "none")
    return new(), old()


Setting = tuple[dict[Switch, str], bool, str]


def set_to(setting: Setting) -> None:
    switches, cudnn, matmul = setting
    torch.set_float32_matmul_precision(matmul)
    torch._C._set_cudnn_allow_tf32(cudnn)
    for switch, value in switches.items():
        put(*switch, value)


def settings() -> Iterator[Setting]:
    """All that torch takes of the switches for CUDA, and then of those for CPUs."""
    few, more = ("none", "ieee", "tf32"), ("none", "ieee", "tf32", "bf16")
    matmuls = ("highest", "high", "medium")
    names = [TOP, ("cuda", "all"), ("cuda", "conv"), ("cuda", "rnn"), ("cuda", "matmul")]
    for values in itertools.product(more, few, few, few, few):
        for cudnn, matmul in itertools.product((False, True), matmuls):
            yield dict(zip(names, values, strict=True)), cudnn, matmul
    names = [TOP, ("mkldnn", "all"), ("mkldnn", "conv"), ("mkldnn", "matmul")]
    for values in itertools.product(more, more, more, more):
        for matmul in matmuls:
            yield dict(zip(names, values, strict=True)), True, matmul


@pytest.fixture
def usual() -> Iterator[None]:
    """What a new process has, as far as it can be set, once more at the end."""
    yield
    set_to((dict.fromkeys((TOP, *BACKENDS, *OPERATIONS), "none"), True, "highest"))
    for operation in ("conv", "rnn"):
        put("cuda", operation, "tf32")


@pytest.mark.usefixtures("usual")
@pytest.mark.parametrize("tf32", [False, True])
def test_every_combination_of_switches_is_put_one_way_and_back(tf32: bool):
    wanted, matmul = ("tf32", "high") if tf32 else ("ieee", "highest")
    for setting in settings():
        set_to(setting)
        before = new(), old()
        set_to(setting)
        by_itself = alone()
        set_to(setting)
        with backends(tf32=tf32):
            assert {get(*switch) for switch in OPERATIONS} == {wanted}, setting
            inside = old()
            assert (inside["cublas"], inside["matmul"]) == (tf32, matmul), setting
            if before[1]["cudnn"] != "raises":
                assert inside["cudnn"] == tf32, setting
            assert get(*TOP) == setting[0][TOP]
        assert (new(), old()) == before, setting
        assert alone() == by_itself, setting


@pytest.mark.usefixtures("usual")
def test_contexts_within_one_another_and_an_error_leave_no_trace():
    put("cuda", "conv", "ieee")
    before = new(), old()

    def failing() -> None:
        with backends(tf32=True), float32(torch.device("cpu")):
            assert {get(*switch) for switch in OPERATIONS} == {"ieee"}
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert (new(), old()) == before


NEW_PROCESS = """
import torch
from toughen import Linf, evaluate

cudnn, generic = torch.backends.cudnn, torch.backends
read = lambda: (generic.fp32_precision, cudnn.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision,
                torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
inside = set()

class Looking(torch.nn.Module):
    def forward(self, x):
        inside.add(read()[2:])
        return torch.stack([x.mean((1, 2, 3)), 0 * x.amax((1, 2, 3))], 1)

x = torch.rand(4, 1, 8, 8)
def run():
    evaluate(Looking(), x, torch.zeros(4).long(), threat=Linf(2 / 255), suite="pgd-2")

for above in ("ieee", "bf16"):
    generic.fp32_precision = above
    before = read()
    run()
    assert read() == before, above
generic.fp32_precision = "none"
assert read() == ("none", "none", "tf32", "tf32", "none", "none"), read()
generic.fp32_precision = "tf32"
run()
assert read() == ("tf32",) * 6, read()
generic.fp32_precision = "none"
cudnn.fp32_precision = "ieee"
run()
cudnn.fp32_precision = "none"
torch.backends.cuda.matmul.fp32_precision = "tf32"
run()
cudnn.conv.fp32_precision = "ieee"
run()
torch.set_float32_matmul_precision("medium")
run()
assert read() == ("none", "none", "ieee", "tf32", "tf32", "bf16"), read()
assert inside == {("ieee",) * 4}, inside
"""


def test_evaluate_takes_every_setting_and_keeps_it():
    """In a process of its own: torch's first state cannot be set again."""
    done = subprocess.run([sys.executable, "-c", NEW_PROCESS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
