import json
from pathlib import Path

import pytest
import torch

from toughen import recipes, workflows
from toughen.data import DATA, load
from toughen.evaluation import evaluate
from toughen.losses import cross_entropy
from toughen.methods import METHODS, Method
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build
from toughen.storage import files
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import early_stopping, train
from toughen.training import run as run_module
from toughen.training.loop import train_batch
from toughen.training.monitors import NonFinite
from toughen.training.setup import build_model, channel_statistics, set_up, splits
from toughen.workflows import EvaluationSettings
from toughen.workflows.run_folder import open_run

CPU = torch.device("cpu")


def recipe(**changes: object) -> Recipe:
    mapping = {
        "data": "tiny",
        "model": {"name": "small_cnn", "width": 2},
        "method": {"name": "free", "replays": 3},
        "threat": "linf:0.1",
        "batch_size": 32,
        "steps": 24,
        "optimizer": {"lr": 0.05},
        "selection": {"suite": "pgd-2", "every": 12},
        "save_every": 6,
        "log_every": 6,
    }
    return build({**mapping, **changes})


def job_of(found: Recipe):
    data = load(found.data.source)
    split, _, index = splits(found, data)
    return set_up(found, data, split, index, CPU)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_resume_evaluate_of_a_2000_parameter_model(tiny: str, tmp_path: Path):
    out = tmp_path / "run"
    summary = train(recipe(averages=[0.9]), out)
    assert sum(p.numel() for p in open_run(out).model.parameters()) <= 2000
    assert (summary["steps"], summary["batches"]) == (24, 8)
    assert (summary["forwards"], summary["backwards"]) == (24, 24)
    assert summary["natural_steps"] == summary["predicted_natural_steps"] == 24
    assert summary == json.loads((out / "summary.json").read_text())
    assert {path.name for path in out.iterdir()} >= {"recipe.yaml", "metrics.jsonl", "timing.jsonl", "checkpoints"}

    records = lines(out / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == [6, 12, 18, 24]
    assert [r["step"] for r in records if "validation" in r] == [12, 24]
    assert all(0 <= r["robust_batch_accuracy"] <= 1 for r in records if "loss" in r)

    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    again = train(recipe(averages=[0.9]), out)
    assert again["best"] == summary["best"]
    assert again["seconds"] == summary["seconds"]
    assert before == {path: path.read_bytes() for path in out.rglob("*.safetensors")}

    found, folder = workflows.evaluate(out, EvaluationSettings("pgd-3", limit=20))
    result = json.loads((folder / "result.json").read_text())
    assert {"clean_accuracy", "robust_accuracy", "n", "suite", "threat"} <= result.keys()
    assert (result["n"], result["suite"], result["threat"]) == (20, "pgd-3", "linf:0.1")
    assert (folder / "examples.parquet").is_file()
    assert found.robust_accuracy <= found.clean_accuracy
    again, _ = workflows.evaluate(out, EvaluationSettings("pgd-3", limit=20))
    assert again.outcomes.robust_correct == found.outcomes.robust_correct


def test_the_resolved_recipe_starts_the_same_run_again(tiny: str, tmp_path: Path):
    train(recipe(), tmp_path / "a")
    train(recipes.load(str(tmp_path / "a" / "recipe.yaml")), tmp_path / "b")
    a, b = (latest_checkpoint(tmp_path / name, warn=print) for name in "ab")
    assert a is not None
    assert b is not None
    for group in ("weights", "method", "optimizer", "best-weights"):
        for name, value in a.tensors(group).items():
            assert torch.equal(value, b.tensors(group)[name])


def test_selection_sees_no_test_image(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def recorded(model, x, y, **given):
        seen.append(x)
        # A validation takes the passes of its suite and no more.
        assert given["audit"] is False
        return evaluate(model, x, y, **given)

    monkeypatch.setattr(early_stopping, "evaluate", recorded)
    train(recipe(), tmp_path / "run")
    data = load("tiny")
    train_images = {bytes(image.numpy()) for image in data.train.images}
    test_images = {bytes(image.numpy()) for image in data.test.images}
    assert not train_images & test_images
    shown = {bytes(image.numpy()) for images in seen for image in images}
    assert shown <= train_images
    _, validation, index = splits(recipe(), data)
    assert shown == {bytes(image.numpy()) for image in validation.images}
    trained_on = {bytes(image.numpy()) for image in data.train.images[index]}
    assert not shown & trained_on


def test_schedule_and_budget_count_optimiser_steps(tiny: str, monkeypatch: pytest.MonkeyPatch):
    found = recipe(schedule={"name": "multistep", "milestones": [0.5], "decay": 0.1}, steps=23)
    assert (found.total_steps, found.batches) == (24, 8)
    job, batches = job_of(found)
    rates = []
    step = job.optimizer.step

    def noted() -> None:
        rates.append(job.optimizer.param_groups[0]["lr"])
        step()

    monkeypatch.setattr(job.optimizer, "step", noted)
    for number in range(found.batches):
        train_batch(job, batches[number])
    assert job.step == 24
    assert job.number == 8
    assert rates == [0.05] * 12 + [0.05 * 0.1] * 12


def test_frees_perturbation_is_carried_into_the_next_epoch(tiny: str):
    job, batches = job_of(recipe())
    for number in range(len(batches)):
        train_batch(job, batches[number])
    left, first = job.state["delta"].clone(), []
    handle = job.model.register_forward_pre_hook(lambda module, inputs: first.append(inputs[0].detach()))
    train_batch(job, batches[len(batches)])
    handle.remove()
    assert left.abs().amax() > 0
    assert torch.equal(first[0], (batches[len(batches)].x + left).clamp(0, 1))


def test_linear_scaling_and_decay_on_weights(tiny: str):
    settings = {"lr": 0.1, "lr_batch_size": 128, "weight_decay": 0.5, "decay_on": "weights"}
    job, _ = job_of(recipe(optimizer=settings))
    decayed, spared = job.optimizer.param_groups
    assert decayed["base_lr"] == 0.025
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(job.model.parameters()))


def test_normalisation_is_that_of_the_training_images(tiny: str):
    data = load("tiny")
    split, _, _ = splits(recipe(), data)
    found = channel_statistics(split)
    pixels = split.images.double() / 255
    assert found["mean"][0] == pytest.approx(float(pixels.mean()), abs=1e-12)
    assert found["std"][0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-12)
    model = build_model(recipe(normalize="data"), data, split)
    assert float(model.normalize(pixels.float()).mean()) == pytest.approx(0, abs=1e-5)


class Poisoned(Method, frozen=True):
    """A NaN in the third batch: in the loss, or in a gradient behind a finite loss."""

    name: str = "poisoned"
    where: str = "loss"

    def losses(self, model, batch, state):
        def objective():
            losses = cross_entropy(model(batch.x), batch.y)
            if batch.noise.key[2] != 2:
                return losses
            if self.where == "loss":
                return losses + torch.tensor([0.0] * 5 + [float("nan")] + [0.0] * (len(losses) - 6))
            weight = next(model.parameters())
            return losses + (weight - weight.detach()).abs().sum().sqrt()

        yield objective


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_before_the_step(
    where: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(METHODS, "poisoned", Poisoned)
    found = recipe(method={"name": "poisoned", "where": where}, save_every=1, log_every=1, selection={"every": 100})
    job, batches = job_of(found)
    for number in range(2):
        train_batch(job, batches[number])
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    momentum = [s["momentum_buffer"].clone() for s in job.optimizer.state.values()]
    for number in (2, 3):
        train_batch(job, batches[number])
        assert all(torch.equal(before[name], value) for name, value in job.model.state_dict().items())
        after = [s["momentum_buffer"] for s in job.optimizer.state.values()]
        assert all(torch.equal(a, b) for a, b in zip(momentum, after, strict=True))
    named = f"examples {int(batches[2].index[5])}" if where == "loss" else "in a gradient"
    with pytest.raises(NonFinite, match=f"AT111 .* step 2 on rank 0 \\({named}"):
        job.finite.check()

    with pytest.raises(NonFinite):
        train(found, tmp_path / "run")
    newest = latest_checkpoint(tmp_path / "run", warn=print)
    assert newest is not None
    assert newest.step == 2


def test_a_folder_with_another_recipe_or_other_files_is_refused_and_left_alone(tiny: str, tmp_path: Path):
    out = tmp_path / "run"
    train(recipe(), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"another recipe \(seed: 0 there, 1 here\); give another out"):
        train(recipe(seed=1), out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="is no run folder"):
        train(recipe(), tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused(tiny: str, tmp_path: Path):
    out = tmp_path / "run"
    train(recipe(), out)
    with files.lock(out), pytest.raises(files.Locked, match="RN531"):
        train(recipe(), out)


def test_other_images_under_the_same_name_are_refused(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(recipe(), tmp_path / "run")
    data = load("tiny")
    data.train.images[0] = 0
    monkeypatch.setitem(DATA, "tiny", lambda: data)
    with pytest.raises(
        RecipeError, match=r"^CK302 .* \(the train images have changed\); restore them, or begin anew in"
    ):
        train(recipe(), tmp_path / "run")
    assert (
        open_run(tmp_path / "run").said == f"the train images of tiny have changed since {tmp_path / 'run'} was trained"
    )
    data.test.images[0] = 0
    vars(data).pop("fingerprints")
    with pytest.raises(ValueError, match=r"^CK302 .* \(the train and test images have changed\), and may have seen"):
        open_run(tmp_path / "run")


def test_a_method_from_outside_the_package_trains_and_comes_back_from_the_run_folder(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Scaled(Method, frozen=True):
        name: str = "scaled"
        scale: float = 2.0

        def losses(self, model, batch, state):
            yield lambda: self.scale * cross_entropy(model(batch.x), batch.y)

    monkeypatch.setitem(METHODS, "scaled", Scaled)
    train(recipe(method={"name": "scaled", "scale": 3}), tmp_path / "run")
    found = open_run(tmp_path / "run").recipe.method
    assert isinstance(found, Scaled)
    assert found.scale == 3.0


def test_training_leaves_the_global_generator_as_it_was(tiny: str, tmp_path: Path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(recipe(), tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def test_opening_runs_says_what_is_missing(tiny: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no recipe\.yaml"):
        open_run(tmp_path)
    (tmp_path / "new").mkdir()
    run_module.claim(recipe(), tmp_path / "new")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        open_run(tmp_path / "new")
    train(recipe(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"has no weights 'average-0\.5'; it has weights"):
        open_run(tmp_path / "run", weights="average-0.5")
    with pytest.raises(ValueError, match="limit is 99, but there are 40"):
        workflows.evaluate(tmp_path / "run", EvaluationSettings("pgd-2", limit=99))


def test_bf16_trains(tiny: str):
    job, batches = job_of(recipe(precision="bf16", method="adversarial"))
    train_batch(job, batches[0])
    job.finite.check()
    assert all(p.dtype == torch.float32 for p in job.model.parameters())
