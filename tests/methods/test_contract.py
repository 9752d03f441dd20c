"""What every training method promises, in every form of `method_cases.CASES`.

The promises stand in `toughen.testing`, for everybody's methods; here is what further holds of ours.
"""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import FULL
from method_cases import CASES, FIRST, Case
from steps import CLASSES, N, batch, network, sgd_steps, spec
from toughen.data import load
from toughen.methods import METHODS, Method
from toughen.recipes.text import build, dump, parse_yaml
from toughen.storage.checkpoint import load_checkpoint, save_checkpoint
from toughen.testing import Promise, method_promises
from toughen.threat import Linf, Threat
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up, splits
from toughen.training.state import capture, restore

BALL = Linf(0.1)
everyone = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def method_of(case: Case, threat: Threat = BALL) -> Method:
    return METHODS[case.settings["name"]].model_validate(case.settings).resolved(threat)


def test_every_method_has_a_row():
    missing = set(METHODS) - {case.settings["name"] for case in CASES.values()}
    assert not missing, f"give each of these a row in tests/method_cases.py: {', '.join(sorted(missing))}"
    for name, kind in METHODS.items():
        assert kind.model_fields["name"].default == name
        assert kind(name=name) == kind.model_validate({"name": name})


def marks_of(label: str) -> list[pytest.MarkDecorator]:
    """None for the form of each method that the tests ask everything."""
    return [] if label in FIRST else FULL


# What the settings of a method cannot change once one form of it keeps them, or what another promise looks at too.
ONCE = {"record", "same again", "random state", "outside objectives", "called twice", "probabilities", "state"}
PROMISES = [
    pytest.param(promise, id=f"{label}-{promise.name}", marks=marks_of(label) if promise.name in ONCE else [])
    for label, case in CASES.items()
    for promise in method_promises(METHODS[case.settings["name"]].model_validate(case.settings))
]


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_holds(promise: Promise):
    promise()


@everyone
def test_running_statistics_move_with_the_training_passes_alone_unless_asked(case: Case):
    method, model = method_of(case), network().train()
    bn = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert bn.num_batches_tracked is not None
    before = int(bn.num_batches_tracked)
    for objective in method.losses(model, batch(), method.typical_state(spec())):
        objective().mean().backward()
    assert int(bn.num_batches_tracked) - before == case.tracked
    assert bn.track_running_stats


@everyone
def test_probabilities_are_refused_in_a_sentence_that_names_the_method(case: Case):
    method, hard = method_of(case), batch()
    soft = replace(hard, y=nn.functional.one_hot(hard.y, CLASSES).double())
    if not method.soft_labels:
        with pytest.raises(ValueError, match=f"method {method.name} needs class numbers"):
            sgd_steps(method, network(), [soft], method.typical_state(spec()))


def losses_without(rows: slice, method: Method) -> list[torch.Tensor]:
    """The losses of every step on a batch of which these rows have no label."""
    one = batch()
    y = one.y.clone()
    y[rows] = -1
    return sgd_steps(method, network(), [replace(one, y=y)], method.typical_state(spec()))


def weighed(method: Method, setting: str, factor: float) -> Method:
    """The method with one of its weights multiplied; a dotted name is one of the method inside."""
    name, _, inner = setting.partition(".")
    value = getattr(method, name)
    return method.model_copy(update={name: weighed(value, inner, factor) if inner else factor * value})


@everyone
def test_an_example_without_a_label_costs_its_regulariser_alone(case: Case):
    """And where there is none, or its weight is 0, exactly nothing; as many times more as its weight is."""
    method = method_of(case)
    rows = slice(0, N if case.mixes else 2)
    found = losses_without(rows, method)
    if case.unlabelled is None:
        assert all((losses[rows] == 0).all() for losses in found)
    else:
        assert (found[0][rows] > 0).all()
        assert torch.equal(losses_without(rows, weighed(method, case.unlabelled, 2))[0][rows], 2 * found[0][rows])
        assert (losses_without(rows, weighed(method, case.unlabelled, 0))[0][rows] == 0).all()
    assert all((losses[rows.stop :] > 0).all() for losses in found)


@everyone
def test_settings_survive_text_and_unknown_ones_are_refused(case: Case, tiny: str):
    method = METHODS[case.settings["name"]].model_validate(case.settings)
    recipe = build({"data": tiny, "model": "small_cnn", "method": case.settings, "threat": "linf:0.1", "steps": 1})
    assert recipe.method == method
    assert build(parse_yaml(dump(recipe), "a dump")) == recipe
    with pytest.raises(ValueError, match="unknown; allowed"):
        METHODS[method.name].model_validate({**case.settings, "no_such_field": 1})


def job_of(case: Case):
    recipe = build(
        {
            "data": {"source": "tiny", "pad": 1, "flip": True, "validation": 16},
            "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
            "method": case.settings,
            "threat": "linf:0.1",
            "batch_size": 32,
            "steps": 60,
            "optimizer": {"lr": 0.05},
            "averages": [0.9],
            "averages_warm_start": True,
            **case.recipe,
        }
    )
    split, _, index = splits(recipe, load("tiny"))
    job, batches = set_up(recipe, load("tiny"), split, index, torch.device("cpu"))
    return job, batches


def tensors(job: Job) -> dict[str, torch.Tensor]:
    return {f"{group}.{name}": t for group, members in capture(job, slots=32)[0].items() for name, t in members.items()}


class Interrupted(Exception):
    """Thrown amid a minibatch."""


@pytest.mark.parametrize("case", [pytest.param(case, id=label, marks=marks_of(label)) for label, case in CASES.items()])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(case: Case, tiny: str, tmp_path: Path):
    whole, batches = job_of(case)
    for number in range(6):
        train_batch(whole, batches[number])
    begun, _ = job_of(case)
    for number in range(3):
        train_batch(begun, batches[number])
    state, counters = capture(begun, slots=32)
    saved = load_checkpoint(save_checkpoint(tmp_path, begun.step, state, counters))

    # What is begun after the save and dies amid the minibatch, in the middle of a replay where there are any.
    update, left = begun.averages.update, max(0, begun.method.steps_per_batch - 2)

    def dying(model: nn.Module, step: int) -> None:
        nonlocal left
        update(model, step)
        left -= 1
        if left < 0:
            raise Interrupted

    begun.averages.update = dying
    with pytest.raises(Interrupted):
        train_batch(begun, batches[3])

    resumed, _ = job_of(case)
    restore(resumed, saved)
    for number in range(3, 6):
        train_batch(resumed, batches[number])
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert whole.passes == copy.copy(resumed.passes)
    assert whole.meters.state() == resumed.meters.state()
    assert whole.method.metrics(whole.state) == resumed.method.metrics(resumed.state)
