"""An example's own result to the bit, in images so large that several threads share the sum over a lone one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.noise import fixed
from toughen.threat import L2, Linf, row_sum, safe_norm

N, SHAPE = 4, (3, 105, 105)  # 33,075 numbers; torch shares out sums of 32,768 and more


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def draws(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=dtype)


class Rowwise(nn.Module):
    """Three classes; no sum runs over more than one row, or over one row alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(draws(2, 33_075) / 40)
        self.last = nn.Parameter(draws(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x - 0.5).flatten(1).unsqueeze(1) * self.first).sum(2).tanh()
        return (hidden.unsqueeze(1) * self.last).sum(2)


CASES = [
    (AttackSpec(name="pgd", steps=2), L2(3)),
    (AttackSpec(name="mi_fgsm", steps=3), L2(3)),
    (AttackSpec(name="deepfool", steps=2), Linf(0.1)),
    (AttackSpec(name="deepfool", steps=2), L2(3)),
    (AttackSpec(name="fab", steps=2), L2(3)),
    (AttackSpec(name="carlini_wagner", steps=4, binary_search_steps=2), L2(3)),
]


@pytest.mark.parametrize(("attack", "threat"), CASES, ids=[f"{attack.name}-{threat.norm}" for attack, threat in CASES])
def test_a_lone_example_is_attacked_as_in_company(attack, threat):
    model, x = Rowwise(), (0.5 + draws(N, *SHAPE) / 4).clamp(0, 1)
    y = model(x).argmax(1)
    together = attack(model, x, y, threat=threat, noise=fixed(N))
    assert not torch.equal(together, x)
    for i in range(N):
        one = slice(i, i + 1)
        assert torch.equal(attack(model, x[one], y[one], threat=threat, noise=fixed(N)[one]), together[one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function", [row_sum, safe_norm, L2(1).project, L2(1).steepest, Linf(1).size], ids=lambda f: f.__qualname__
)
def test_what_runs_over_a_row_knows_no_other(function, dtype):
    values = draws(N, *SHAPE, dtype=dtype)
    together = function(values)
    for i in range(N):
        for end in range(i + 1, N + 1):
            assert torch.equal(function(values[i:end]), together[i:end])


def test_the_sum_over_each_example():
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert row_sum(values).tolist() == [66, 210]
    assert row_sum(values[1:]).tolist() == [210]
    assert row_sum(values[:0]).shape == (0,)
    assert row_sum(torch.zeros(2, 0)).tolist() == [0, 0]
