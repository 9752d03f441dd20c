"""The watch for catastrophic overfitting; as a script, one of several ranks that make the same check."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import collapse
from conftest import few, tiny_data
from processes import run_ranks
from toughen.data import DATA, load, subset
from toughen.data.base import Examples
from toughen.methods import LabelSmoothing, Natural
from toughen.models import MODELS
from toughen.noise import Stream
from toughen.parallel import ranks
from toughen.progress import Display
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build
from toughen.report import describe_training, render
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import checkpointer, train
from toughen.training.catastrophic_overfitting import (
    OverfittingMonitor,
    ball_of,
    check_cost,
    collapsed,
    interval,
    recovered,
)
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up, splits

CPU = torch.device("cpu")
EVERY = 20


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checks(folder: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line["overfitting"] for line in lines(folder) if "overfitting" in line}


class Notes(Display):
    """Keeps what it is told, and can stop a run."""

    def __init__(self, stop_at: int | None = None):
        self.notes: list[str] = []
        self._stop_at = stop_at

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, record: dict[str, Any], images_per_second: float) -> None:
        if record["step"] == self._stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "prototypes", collapse.smooth_prototypes)
    monkeypatch.setitem(MODELS, "two_convolutions", collapse.TwoConvolutions)


def job_of(recipe: Recipe) -> tuple[Job, Any, Examples]:
    data = load(recipe.data.source)
    split, _, index = splits(recipe, data)
    return *set_up(recipe, data, split, index, CPU), split


def by_hand(model: nn.Module, split: Examples, seed: int, eps: float) -> tuple[float, float]:
    """Accuracy under FGSM and PGD-10 (steps of eps / 4) in plain torch, on the 256 examples of the seed."""
    chosen, numbers = subset(split, 256, seed=seed)
    x, y = chosen.float_images(), chosen.labels
    start = eps * Stream((seed, "overfitting", "pgd", 0), numbers).uniform(tuple(x.shape[1:]))

    def ascended(x_adv: torch.Tensor, steps: int, length: float) -> float:
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
            x_adv = (x + (x_adv.detach() - x + length * grad.sign()).clamp(-eps, eps)).clamp(0, 1)
        return float((model(x_adv).argmax(1) == y).double().mean())

    return ascended(x, 1, eps), ascended((x + start).clamp(0, 1), 10, eps / 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", few(0, 1))
def test_the_alarm_comes_with_the_first_check_after_the_collapse(
    prototypes: None, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
):
    recipe = collapse.recipe(collapse.FGSM, 0.3, steps=200, seed=seed, overfitting_every=EVERY)
    split, found, original = splits(recipe, load("prototypes"))[0], {}, OverfittingMonitor.check

    def check(self: OverfittingMonitor, job: Job, best: Any) -> dict[str, Any]:
        found[job.step] = by_hand(job.model, split, seed, 0.3)
        return original(self, job, best)

    monkeypatch.setattr(OverfittingMonitor, "check", check)
    display = Notes()
    summary = train(recipe, tmp_path / "run", display=display)
    logged = checks(tmp_path / "run")
    assert logged.keys() == found.keys()
    for step, (one_step, pgd) in found.items():
        # Sums in another order may move an example that lies on the boundary.
        assert abs(logged[step]["one_step_accuracy"] - one_step) <= 2 / 256
        assert abs(logged[step]["pgd_accuracy"] - pgd) <= 2 / 256
    first = next(step for step, (one_step, pgd) in found.items() if one_step - pgd > 0.30)
    assert [alarm["step"] for alarm in summary["alarms"]] == [first]
    assert summary["alarms"] == [{"step": first, **logged[first]}]
    # Once, though the collapse lasts.
    assert [note for note in display.notes if "AT101" in note] == [logged[first]["alarm"]]
    assert logged[200]["one_step_accuracy"] > 0.30 + logged[200]["pgd_accuracy"]
    assert "alarm" not in logged[200]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "eps", "steps"), few((collapse.FGSM, 0.1, 100), (collapse.PGD, 0.15, 100)))
def test_sound_training_raises_no_alarm(
    prototypes: None, tmp_path: Path, method: dict[str, Any], eps: float, steps: int
):
    recipe = collapse.recipe(method, eps, steps=steps, overfitting_every=EVERY)
    assert train(recipe, tmp_path / "run")["alarms"] == []
    assert checks(tmp_path / "run")[steps]["pgd_accuracy"] > 0.8


def tiny_recipe(**changes: object) -> Recipe:
    mapping = {
        "data": {"source": "tiny", "pad": 1, "flip": True},
        "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
        "method": {"name": "free", "replays": 3},
        "threat": "linf:0.1",
        "batch_size": 32,
        "steps": 24,
        "optimizer": {"lr": 0.05},
        "averages": [0.9],
        "selection": {"suite": "pgd-2", "every": 12},
        "save_every": 12,
    }
    return build({**mapping, **changes})


def test_a_check_looks_and_changes_nothing(tiny: str):
    recipe = tiny_recipe()
    job, batches, split = job_of(recipe)
    train_batch(job, batches[0])
    watch = OverfittingMonitor.over(recipe, job.method, split, CPU)
    images = split.images.clone()
    next(job.model.children()).eval()
    flags = [module.training for module in job.model.modules()]
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    gradients = [p.grad.clone() for p in job.model.parameters() if p.grad is not None]
    passes, generator = vars(job.passes).copy(), torch.get_rng_state()
    assert watch.check(job, {}) == watch.check(job, {})
    assert all(torch.equal(value, before[name]) for name, value in job.model.state_dict().items())
    assert flags == [module.training for module in job.model.modules()]
    assert all(p.requires_grad for p in job.model.parameters())
    after = [p.grad for p in job.model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.equal(a, b) for a, b in zip(gradients, after, strict=True))
    assert passes == vars(job.passes)
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.equal(images, split.images)
    # Fewer images than 256: all of them, in passes of a batch.
    assert watch.n == len(split) == len(watch.images)
    sizes: list[int] = []
    handle = job.model.register_forward_hook(lambda module, inputs, logits: sizes.append(len(logits)))
    watch.check(job, {})
    handle.remove()
    assert max(sizes) == 32
    # 1 + 1 passes for FGSM and 10 + 1 for PGD.
    assert sum(sizes) == 13 * watch.n


def test_a_run_that_was_stopped_amid_a_collapse_writes_the_same_log(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Right under the one-step attack and under PGD, of 135: a drop at 9, sound again at 18, a gap at 21.
    script = {3: (120, 110), 6: (120, 110), 9: (100, 50), 12: (90, 40), 15: (90, 40), 18: (110, 100), 21: (130, 20)}
    original = OverfittingMonitor.judge

    def judge(self: OverfittingMonitor, step: int, one_step: int, under_pgd: int, best: Any) -> dict[str, Any]:
        return original(self, step, *script.get(step, (one_step, under_pgd)), best)

    monkeypatch.setattr(OverfittingMonitor, "judge", judge)
    recipe = tiny_recipe(overfitting_every=3, log_every=3, save_every=6)
    display = Notes()
    whole = train(recipe, tmp_path / "whole", display=display)
    assert [alarm["step"] for alarm in whole["alarms"]] == [9, 21]
    assert [note for note in display.notes if "AT101" in note] == [alarm["alarm"] for alarm in whole["alarms"]]
    # Before the first alarm is saved: the drop is seen from the accuracy of an earlier sitting. Then while it lasts.
    for step in (9, 15):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", display=Notes(stop_at=step))
    again = train(recipe, tmp_path / "run", display=(later := Notes()))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert again["alarms"] == whole["alarms"]
    assert [note for note in later.notes if "AT101" in note] == [whole["alarms"][1]["alarm"]]
    text = "".join(str(part) for part in render(describe_training(again)).renderables)
    assert all(alarm["alarm"] in text for alarm in whole["alarms"])


def test_the_summary_says_whether_a_run_was_checked(tiny: str, tmp_path: Path):
    checked = train(tiny_recipe(overfitting_every=6), tmp_path / "a")
    assert list(checks(tmp_path / "a")) == [6, 12, 18, 24]
    assert checked["alarms"] == []
    assert (checked["forwards"], checked["backwards"]) == (24, 24)
    off = train(tiny_recipe(overfitting_every=0), tmp_path / "b")
    assert off["alarms"] is None
    assert checks(tmp_path / "b") == {}
    # The run with checks is the run without.
    a, b = (latest_checkpoint(tmp_path / name, warn=print) for name in "ab")
    assert a is not None
    assert b is not None
    for group in ("weights", "average-0.9", "method", "optimizer"):
        assert all(torch.equal(value, b.tensors(group)[name]) for name, value in a.tensors(group).items())
    # Rounded up to whole batches, of three steps here, and one after the last step.
    train(tiny_recipe(overfitting_every=10), tmp_path / "c")
    assert list(checks(tmp_path / "c")) == [12, 21, 24]
    natural = train(tiny_recipe(method="natural", overfitting_every=6), tmp_path / "d")
    assert natural["alarms"] is None
    assert checks(tmp_path / "d") == {}


def test_a_checkpoint_from_before_the_checks_loads(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = checkpointer.save_checkpoint

    def older(folder: Path, step: int, tensors: Any, state: dict[str, Any], **given: Any) -> Path:
        state.pop("overfitting")
        return original(folder, step, tensors, state, **given)

    recipe = tiny_recipe(overfitting_every=6, log_every=6)
    with monkeypatch.context() as patched:
        patched.setattr(checkpointer, "save_checkpoint", older)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", display=Notes(stop_at=18))
    assert train(recipe, tmp_path / "run")["steps"] == 24
    assert list(checks(tmp_path / "run")) == [6, 12, 18, 24]


@pytest.mark.parametrize(
    ("one_step", "under_pgd", "previous", "expected"),
    [
        # 76.8 of 256 are 30 %.
        (177, 100, None, "gap"),
        (176, 100, 100, None),
        (256, 0, 0, "gap"),
        # Halved, from 120 to 60, and half of what the one-step attack leaves.
        (130, 60, 120, "drop"),
        (130, 61, 120, None),
        # Both attacks gained alike: the training shakes.
        (100, 60, 120, None),
        (60, 60, 200, None),
        # 26 are right by a constant answer; 22 more are not beyond chance, 3 sqrt((26 230 + 48 208) / 256) = 23.7, and
        # 26 more are (24.2).
        (60, 5, 48, None),
        (60, 5, 52, "drop"),
        (20, 0, 26, None),
        # No robustness to lose yet.
        (60, 0, None, None),
    ],
)
def test_the_rule(one_step: int, under_pgd: int, previous: int | None, expected: str | None):
    assert collapsed(one_step, under_pgd, previous, constant=26, n=256) == expected


def test_few_examples_say_less():
    # 40 % of 20: 8 > 3 sqrt((12 8 + 4 16) / 20) = 8.5 does not hold; 55 %: 11 > 3 sqrt((12 8 + 1 19) / 20) = 7.2 does.
    assert collapsed(12, 4, None, constant=2, n=20) is None
    assert collapsed(12, 1, None, constant=2, n=20) == "gap"


def test_a_collapse_lasts_until_both_accuracies_are_back():
    # 38.4 of 256 are 15 %.
    assert recovered(138, 100, before=199, n=256)
    assert not recovered(139, 100, before=199, n=256)
    assert not recovered(138, 100, before=200, n=256)


def watch_of(n: int, constant: int) -> OverfittingMonitor:
    none = torch.empty(0)
    return OverfittingMonitor(1, None, none, none, Stream((0,), torch.arange(0)), n, constant, 1)


def test_one_alarm_for_each_collapse_and_what_it_says():
    watch = watch_of(n=200, constant=20)
    best = {"weights": {"step": 280, "clean_accuracy": 0.9, "robust_accuracy": 0.405}}
    judge = functools.partial(watch.judge, best=best)
    assert judge(280, 100, 90) == {"one_step_accuracy": 0.5, "pgd_accuracy": 0.45}
    assert judge(320, 126, 8)["alarm"] == (
        "AT101 Catastrophic overfitting at step 320: accuracy 63 % under the one-step attack but 4 % under PGD-10. The "
        "model is not robust. Best checkpoint so far: step 280 (robust accuracy 40 % in validation). Use a smaller "
        "step size, N-FGSM (method.noise_scale: 2) or PGD."
    )
    assert "alarm" not in judge(360, 150, 2)
    # The gap is closed, but half of the 90 is not reached: the collapse lasts.
    assert "alarm" not in judge(400, 30, 30)
    assert "alarm" not in judge(440, 120, 20)
    assert "alarm" not in judge(480, 120, 100)
    assert watch.judge(520, 80, 40, {})["alarm"] == (
        "AT101 Catastrophic overfitting at step 520: accuracy under PGD-10 fell from 50 % to 20 % since the last check "
        "(40 % under the one-step attack). The model is losing its robustness. There is no validated checkpoint yet. "
        "Use a smaller step size, N-FGSM (method.noise_scale: 2) or PGD."
    )
    assert [alarm["step"] for alarm in watch.memory.alarms] == [320, 520]


def sized(method: object, steps: int, batch_size: int = 128, **changes: object) -> Recipe:
    return build(
        {
            "data": "tiny",
            "model": "small_cnn",
            "method": method,
            "threat": "linf:0.1",
            "steps": steps,
            "batch_size": batch_size,
            **changes,
        }
    )


def test_the_default_interval_spends_two_per_cent(tiny: str):
    # FGSM and its verdict: 2 forwards, 1 backward to the input; PGD-10: 11 and 10. 24 passes, three a natural step.
    assert [check_cost(b) for b in (64, 128, 200, 256, 512)] == [32, 16, 16, 8, 8]
    assert check_cost(32, examples=100) == 32
    # FGSM training: 2 forwards, an input and a full backward, 5/3 a step; 33,000 steps pay for 68.75 checks of 16.
    assert interval(sized(collapse.FGSM, 33_000)) == 486
    # PGD-10: 23/3; 7,100 steps pay for 68.04. Free-8: 1 a step; 16,160 pay for 20.2.
    assert interval(sized({"name": "adversarial", "attack": {"name": "pgd", "steps": 10}}, 7_100)) == 105
    assert interval(sized({"name": "free", "replays": 8}, 16_160)) == 808
    # 0.02 x 480 x 5/3 = 16: a run of 479 steps does not pay for one check, that of 481 for the one at its end.
    assert interval(sized(collapse.FGSM, 479)) == 0
    assert interval(sized(collapse.FGSM, 481)) == 481
    assert interval(sized(collapse.FGSM, 479, overfitting_every=7)) == 7
    assert interval(sized(collapse.FGSM, 33_000, overfitting_every=0)) == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, "often"])
def test_a_recipe_with_another_interval_is_refused(tiny: str, wrong: object):
    with pytest.raises(RecipeError, match="overfitting_every"):
        sized(collapse.FGSM, 10, overfitting_every=wrong)


def test_a_wrapped_method_is_checked_in_the_ball_of_the_one_inside():
    recipe = sized({"name": "label_smoothing", "method": {"name": "free", "radius_scale": 2}}, 10)
    assert isinstance(recipe.method, LabelSmoothing)
    assert str(ball_of(recipe.method.resolved(recipe.threat))) == "linf:0.2"
    assert ball_of(Natural()) is None
    assert ball_of(LabelSmoothing(method=Natural())) is None


def checked_by_rank(folder: Path) -> None:
    """The same checks of the same weights on however many ranks, one of them of a single example: a rank has none."""
    recipe = tiny_recipe()
    job, _, split = job_of(recipe)
    found = [
        OverfittingMonitor.over(recipe, job.method, part, CPU).check(job, {})
        for part in (split, split.take(torch.arange(1)))
    ]
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(found))


def test_every_rank_comes_to_the_same_result(tiny: str, tmp_path: Path):
    (tmp_path / "ranks").mkdir()
    checked_by_rank(tmp_path)
    run_ranks(Path(__file__), tmp_path / "ranks", 2)
    alone, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("0.json", "ranks/0.json", "ranks/1.json")
    )
    assert alone == first == second
    assert 0 < alone[0]["one_step_accuracy"] < 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    DATA["tiny"] = tiny_data
    with ranks.group(CPU):
        checked_by_rank(Path(sys.argv[1]))
