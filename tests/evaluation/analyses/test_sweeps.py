import numpy as np
import pytest
import torch

from oracles import linear_problem
from toughen.attacks import pgd, targeted_pgd
from toughen.evaluation.analyses.sweeps import EpsSweep, eps_sweep, step_sweep
from toughen.models.cost import counted
from toughen.modes import channels_last
from toughen.noise import Stream
from toughen.outcomes import interval
from toughen.threat import L2, Linf, Threat
from toys import labels, network, photographs, spec

RADII = [4 / 255, 0.0, 1 / 255, 2 / 255]


def smooth(n: int = 6):
    """A float64 network with images that it classifies correctly."""
    model, x = network(dtype=torch.float64).eval(), photographs(n).double() / 255
    return model, x, labels(model, x)


def test_accuracy_over_the_radius_is_what_cannot_be_broken():
    problem = linear_problem(n=60, dtype=torch.float64)
    suite = {"mt": spec("multi_targeted", steps=20)}
    found = eps_sweep(problem.model, problem.x, problem.y, radii=RADII, suite=suite)
    assert found.radii.tolist() == sorted(RADII)
    truth = np.stack([~problem.breakable(radius).numpy() for radius in found.radii.tolist()])
    assert np.array_equal(found.survived, truth)
    assert found.clean_correct.all()
    assert found.accuracies == [row.mean() for row in truth]
    assert 0 < found.accuracies[-1] < found.accuracies[1] < found.accuracies[0] == 1
    assert found.warning is None
    at = found.summary()["radii"][2]
    assert at["interval"] == list(interval(int(truth[2].sum()), 60))
    assert (found.norm, found.suite) == ("linf", "custom")


def test_a_suite_by_name_is_asked_anew_at_each_radius():
    model, x, y = smooth()
    found = eps_sweep(model, x, y, radii=[2 / 255, 20 / 255], suite="pgd-5")
    # Five steps of 2/255 do not cross 20/255.
    assert [settings["pgd-5"]["step_size"] for settings in found.settings] == [2 / 255, 10 / 255]
    assert found.suite == "pgd-5"


@pytest.mark.parametrize("norm", ["l2", L2])
def test_the_norm_is_a_name_or_a_class(norm):
    problem = linear_problem(n=40, dtype=torch.float64, inner=True)
    distance = problem.distance_l2()
    radius = distance.median().item() + 1e-4
    suite = {"mt": spec("multi_targeted", steps=20)}
    found = eps_sweep(problem.model, problem.x, problem.y, norm=norm, radii=[radius], suite=suite)
    assert found.norm == "l2"
    assert np.array_equal(found.survived[0], (distance > radius).numpy())


def test_an_accuracy_that_rises_with_the_radius_is_said():
    def weak(model, x, y, *, threat: Threat):
        """Strong in small balls only."""
        return pgd(model, x, y, threat=threat, steps=10) if threat.eps < 3 / 255 else x

    problem = linear_problem(n=40)
    found = eps_sweep(problem.model, problem.x, problem.y, radii=RADII, suite={"weak": weak})
    lost = 40 - int(found.survived[2].sum())
    assert lost > 0
    assert found.rises == [{"lower": 2 / 255, "upper": 4 / 255, "examples": lost, "marginal": 0}]
    assert found.warning is not None
    assert f"rises by {lost} of 40 examples" in found.warning
    assert found.summary()["warning"] == found.warning
    # What broke in a ball lies in every larger one.
    assert found.accuracies[3] == 1
    assert found.nested_accuracies[3] == found.accuracies[2]


def sweep_of(survived: list[list[bool]], marginal: list[list[bool]]) -> EpsSweep:
    n = len(survived[0])
    arrays = (np.arange(len(survived)) / 255, np.arange(n), np.ones(n), np.array(survived), np.array(marginal))
    return EpsSweep("linf", "custom", [], 0, *arrays)


def test_a_rise_of_marginal_examples_is_rounding():
    survived = [[True, False, False], [False, True, True]]
    calm = [[False] * 3] * 2
    assert sweep_of(survived, calm).rises[0]["examples"] == 1
    assert not sweep_of(survived, [[False, True, False], [False] * 3]).rises
    # A marginal verdict on an example that did not gain explains nothing.
    assert sweep_of([[True, False], [True, True]], [[True, False], [True, False]]).rises
    assert sweep_of(survived, [[True, False, False], [True, False, False]]).rises
    assert not sweep_of([[True, False], [False, True]], [[False] * 2] * 2).rises


def test_wrong_on_the_image_is_broken_at_every_radius():
    model, x, y = smooth()
    y[2] = (y[2] + 1) % 5
    found = eps_sweep(model, x, y, radii=[0.0], suite="pgd-2", index=torch.arange(6) + 50)
    assert found.clean_correct.tolist() == found.survived[0].tolist() == [True, True, False, True, True, True]
    assert found.index.tolist() == [50, 51, 52, 53, 54, 55]


@pytest.mark.parametrize("radii", [[], [0.1, 0.1], [-0.1]])
def test_impossible_radii_are_refused(radii):
    with pytest.raises(ValueError, match=r"radii are|must be finite and not negative"):
        eps_sweep(*smooth(), radii=radii)


@pytest.mark.parametrize("threat", [Linf(6 / 255), L2(0.4), Linf(torch.linspace(0, 0.1, 6, dtype=torch.float64))])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("random_start", [True, False])
def test_one_run_says_what_a_run_for_each_number_of_steps_says(threat, loss, random_start):
    model, x, y = smooth()
    seen = []
    handle = model.register_forward_hook(lambda _module, given, _logits: seen.append(given[0].detach()))
    given = {"step_size": 1.5 / 255, "loss": loss, "random_start": random_start}
    counts = [1, 2, 5, 9]
    found = step_sweep(model, x, y, threat=threat, steps=counts, seed=3, **given)
    handle.remove()
    # Three looks at the model, the images, and then the last pass of each count is that of its end point.
    ends = [seen[3 + steps + at] for at, steps in enumerate(counts, start=1)]
    for at, steps in enumerate(counts):
        noise = Stream(("step-sweep", 3), rows=torch.arange(6))
        # The layout of an evaluation, in which sums of floats are taken in another order.
        with channels_last(model):
            x_adv = pgd(model, x, y, threat=threat, steps=steps, noise=noise, **given)
        assert torch.equal(ends[at], x_adv)
        assert found.survived[at].tolist() == (model(x_adv).argmax(1) == y).tolist()
    assert found.target.tolist() == [-1] * 6


def test_random_targets_are_those_of_the_targeted_attack():
    model, x, y = smooth(40)
    threat, counts = Linf(6 / 255), [2, 6]
    found = step_sweep(model, x, y, threat=threat, steps=counts, step_size=2 / 255, target="random")
    assert set((found.target - y.numpy()) % 5) == {1, 2, 3, 4}
    for at, steps in enumerate(counts):
        noise = Stream(("step-sweep", 0), rows=torch.arange(40))
        x_adv = targeted_pgd(model, x, y, threat=threat, steps=steps, step_size=2 / 255, noise=noise)
        assert found.survived[at].tolist() == (model(x_adv).argmax(1) == y).tolist()
    assert 0 < found.accuracies[1] < found.accuracies[0] < 1
    given = step_sweep(
        model, x, y, threat=threat, steps=counts, step_size=2 / 255, target=torch.from_numpy(found.target.copy())
    )
    assert np.array_equal(given.survived, found.survived)
    # One that is left out, being wrong as it is, moves neither draws nor targets of those after it.
    y[0] = (y[0] + 1) % 5
    fewer = step_sweep(model, x, y, threat=threat, steps=counts, step_size=2 / 255, target="random")
    assert np.array_equal(fewer.survived[:, 1:], found.survived[:, 1:])


def test_the_longest_run_is_paid_once_and_by_the_correct_alone():
    model, x, y = smooth()
    y[4] = (y[4] + 1) % 5
    with counted(model) as passes:
        found = step_sweep(model, x, y, threat=Linf(4 / 255), steps=[20, 1, 7], batch_size=4)
    # Looks at the model, at one image and at two in both layouts; every image once, and for the five 20 steps and 3
    # verifications.
    assert passes.example_forwards == 5 + 6 + 5 * (20 + 3)
    assert (passes.example_backwards, passes.full_backwards) == (4 + 5 * 20, 0)
    assert found.steps.tolist() == [1, 7, 20]
    assert not found.survived[:, 4].any()
    assert found.clean_correct.tolist() == [True, True, True, True, False, True]
    assert found.step_size == 2 / 255


def test_a_chunk_without_a_correct_image_costs_nothing_more():
    model, x, y = smooth()
    with counted(model) as passes:
        found = step_sweep(model, x, (y + 1) % 5, threat=L2(0.5), steps=[3])
    assert passes.example_forwards == 5 + 6
    assert found.accuracies == [0]


class Dip(torch.nn.Module):
    """One pixel u, classified as 1 within 0.07 of 0.62, where the score is highest."""

    def forward(self, x):
        score = 0.005 - (x.flatten(1)[:, 0] - 0.62) ** 2
        return torch.stack([torch.zeros_like(score), score], 1)


def test_an_end_point_may_lose_what_one_before_it_had():
    found = step_sweep(
        Dip(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]),
        threat=Linf(0.3), steps=[1, 2, 3, 4], step_size=0.1, random_start=False, loss="margin",
    )  # fmt: skip
    # 0.6, 0.7, 0.6, 0.7: the peak lies between.
    assert found.accuracies == [0, 1, 0, 1]
    assert found.worst_accuracies == [0, 0, 0, 0]
    assert [row["worst_accuracy"] for row in found.summary()["steps"]] == [0, 0, 0, 0]


def test_large_images_take_the_steps_of_imagenet():
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    found = step_sweep(model, torch.zeros(1, 1, 80, 8), torch.tensor([0]), threat=Linf(4 / 255), steps=[4])
    assert found.step_size == 1 / 255


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": []}, "at least one number"),
        ({"steps": [0, 3]}, "at least one number"),
        ({"steps": [3, 3]}, "each once"),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"loss": "kl"}, "clean probabilities"),
        ({"loss": "marginn"}, "did you mean"),
        ({"target": "randon"}, "did you mean 'random'"),
        ({"target": torch.full((6,), 5)}, "classes 0 to 4"),
        ({"threat": Linf(torch.zeros(5))}, "5 radii for 6 images"),
    ],
)
def test_impossible_step_sweeps_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        step_sweep(*smooth(), **{"threat": Linf(0.1), "steps": [1], **settings})


def test_a_target_that_is_the_label_is_refused():
    model, x, y = smooth()
    with pytest.raises(ValueError, match="must not be its label"):
        step_sweep(model, x, y, threat=Linf(0.1), steps=[1], target=y)
