"""The suite `adaptive` on a model whose gradients mislead: what they do not find is searched for, in everyone."""

import torch
from torch import Tensor

from oracles import Affine
from toughen.evaluation import evaluate
from toughen.noise import generator
from toughen.threat import Linf


class Hidden(Affine):
    """A linear model whose gradient is nothing but the mean of the image, in favour of no class."""

    def forward(self, x: Tensor) -> Tensor:
        seen = x.flatten(1)
        return super().forward(x.detach()) + (seen - seen.detach()).mean(1, keepdim=True)


def hidden(n: int = 24) -> tuple[Hidden, Tensor, Tensor, Tensor]:
    """A model, images and labels, and which of them a ball of 0.07 breaks."""
    draw = generator("hidden")
    model = Hidden(torch.randn(3, 16, generator=draw), torch.zeros(3)).double()
    x = 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    weight = model.weight.detach()
    toward = (weight.unsqueeze(0) - weight[y].unsqueeze(1)).abs().sum(2) * 0.07
    highest = logits - logits.gather(1, y.unsqueeze(1)) + toward
    return model, x, y, highest.scatter(1, y.unsqueeze(1), -torch.inf).amax(1) > 0


def test_where_gradients_mislead_the_search_goes_on_to_everyone():
    model, x, y, breakable = hidden()
    assert 6 < breakable.sum() < 20
    found = evaluate(model, x, y, threat=Linf(0.07), suite="adaptive")
    assert found.outcomes.robust_correct == int((~breakable).sum())
    tallies = found.outcomes.per_attack()
    assert all(tallies[f"adaptive-search-{stage}"]["broken"] for stage in (1, 2, 3))
    assert found.audit is not None
    assert "EV287" in found.audit.codes
