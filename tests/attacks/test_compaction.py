"""When broken examples leave an attack: later, where the host would have to wait, and with the same end."""

import pytest
import torch

from late_leaving import BALLS, RUNS, examples, given_to, leaves_examples
from toughen.attacks import compaction
from toughen.attacks.registry import ATTACKS
from toughen.models.batched import Batched
from toughen.models.cost import counted
from toughen.testing import toys

CASES = [pytest.param(name, norm, id=f"{name}-{norm}") for name, run in RUNS.items() for norm in run.norms]


def outcome(name: str, norm: str) -> tuple[torch.Tensor, int, int]:
    """The points that an attack returns, the passes that it took, and those of them that were for nothing."""
    run, model = RUNS[name], toys.Rowwise()
    batched = Batched(model, 5)
    x, y = examples(model)
    with counted(batched.model) as passes:
        found = ATTACKS[run.name](batched, x, y, threat=BALLS[norm], **given_to(run, x, y), **run.settings)
    return found, passes.example_forwards + passes.example_backwards, int(batched.idle)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_points_are_those_of_leaving_at_once(name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, on a model whose rows do not know of each other; and every pass more is counted."""
    expected, passes, idle = outcome(name, norm)
    assert idle == 0
    monkeypatch.setattr(compaction, "AT_ONCE", ())
    found, more, idle = outcome(name, norm)
    assert torch.equal(found, expected)
    # FAB saves some, too: it asks for logits first, and so takes no gradient beyond the boundary.
    assert more <= passes + idle if name.startswith("fab") else more == passes + idle
    assert idle or name.endswith(("restarts", "one-step", "spsa"))


def test_every_attack_that_leaves_examples_is_run() -> None:
    assert {run.name for run in RUNS.values()} == leaves_examples()
