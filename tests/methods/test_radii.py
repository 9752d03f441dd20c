import pytest
import torch

from toughen.attacks import AttackSpec
from toughen.methods.instance_adaptive import InstanceAdaptive
from toughen.methods.radii import described
from toughen.threat import Linf


def test_the_log_describes_the_radii_of_the_examples_seen():
    memory = torch.tensor([-1, 0.0, 0.1, -1, 0.15, 0.5])
    found = described(memory, 0.2)
    assert found["radius_mean"] == pytest.approx((0.0 + 0.1 + 0.15 + 0.5) / 4)
    edges, counts = found["radius_histogram"]["edges"], found["radius_histogram"]["counts"]
    # As many bins of a sixteenth of 0.2 as the largest radius needs.
    assert edges == pytest.approx([0.0125 * i for i in range(41)])
    assert (len(counts), sum(counts)) == (40, 4)
    assert (counts[0], counts[12], counts[39]) == (1, 1, 1)
    assert found["radius_of"] == pytest.approx({"1": 0.0, "2": 0.1, "4": 0.15})
    assert described(torch.full((3,), -1.0), 0.2) == {}
    small = described(torch.tensor([0.01, 0.19]), 0.2)["radius_histogram"]
    assert small["edges"] == pytest.approx([0.0125 * i for i in range(17)])
    assert small["counts"] == [1, *[0] * 14, 1]
    huge = described(torch.tensor([0.0, 0.5, 9.0]), 0.02)["radius_histogram"]
    assert (len(huge["counts"]), huge["edges"][-2], huge["edges"][-1]) == (256, pytest.approx(0.02 * 255 / 16), 9.0)
    assert (huge["counts"][0], huge["counts"][-1]) == (1, 2)
    still = InstanceAdaptive(attack=AttackSpec.model_validate({"name": "fgsm"}), threat=Linf(0))
    assert still.metrics({"radius": memory})["radius_mean"] > 0
