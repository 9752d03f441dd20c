"""What is known of a run's weights: everything that a model card may say, from the run folder's files alone.

facts = gather(Path("runs/free"), checkpoint="best", weights=None)
facts.evaluations[0].robust_interval            # the worst case that was measured on these very weights
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from toughen import __version__, recipes
from toughen.devices import own_draws
from toughen.evaluation import Evaluation
from toughen.evaluation.result import RESULT
from toughen.models.exported import FORMAT, Config, normalization
from toughen.models.hashes import hash_model
from toughen.models.reached_code import reached
from toughen.storage import files
from toughen.storage.checkpoint import Checkpoint, latest_checkpoint
from toughen.workflows.run_folder import OpenedWeights, open_trained

TARGETED_ATTACKS = ("apgd_targeted", "multi_targeted")
BUDGET = 100
"""Steps that AutoAttack gives its gradient attacks (Croce & Hein 2020, section 6)."""


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What is known of the weights to export.

    Attributes:
        run: with the model on the CPU, in inference mode.
        checkpoint: that the weights are from.
        summary: of the finished run; empty where it has not ended.
        evaluations: of these weights, those in the run's own ball first, of these the lowest robust accuracy first.
        corruptions: what was measured of these weights on corrupted images, as `result.json` has it.
        notes: sentences on what was left out.
    """

    run: OpenedWeights
    checkpoint: Checkpoint
    summary: dict[str, Any]
    evaluations: tuple[Evaluation, ...]
    corruptions: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def config(self) -> Config:
        """See `exported.Config`."""
        run, data = self.run, self.run.about
        model = run.recipe.model.model_dump(mode="json")
        # What training started from is no option of the network.
        options = {key: model[key] for key in run.recipe.model.settings}
        return {
            "format": FORMAT,
            "toughen": __version__,
            "architecture": {"name": model["name"], "options": options},
            "num_classes": data.num_classes,
            "in_channels": data.channels,
            "image_shape": list(data.image_shape),
            "classes": list(data.classes),
            "normalization": normalization(run.model),
            "view": self.view,
            "threat": str(run.recipe.threat),
            "recipe": run.recipe.name,
            "method": run.recipe.method.name,
            "data": data.name,
            "fingerprints": dict(data.fingerprints),
            "trained_view": asdict(view) if (view := run.recipe.data.view) else None,
            "weights": run.weights,
            "step": run.step,
            "checkpoint_sha256": self.checkpoint.files[f"{run.weights}.safetensors"]["sha256"],
        }

    @property
    def view(self) -> dict[str, int] | None:
        """How the data's images were brought to one size, where they were."""
        data = self.run.recipe.data.model_dump(mode="json")
        if not (size := data.get("size")):
            return None
        return {"size": size, "resize": data.get("resize") or round(size * 8 / 7)}

    @property
    def in_the_ball(self) -> tuple[Evaluation, ...]:
        """The evaluations in the run's own ball."""
        return tuple(found for found in self.evaluations if found.threat == str(self.run.recipe.threat))

    @property
    def recipe(self) -> str:
        """The recipe as text; the places of local files are nobody else's business."""
        recipe = self.run.recipe.model_dump(mode="json")
        places = [(recipe["data"], "source", self.run.about.name)]
        if extra := recipe["data"].get("extra"):
            places.append((extra, "source", Path(extra["source"]).name))
        if weights := recipe["model"].get("weights"):
            places.append((recipe["model"], "weights", Path(weights).name))
        hidden = False
        for section, key, name in places:
            if Path(section[key]).is_absolute():
                section[key], hidden = name, True
        if not hidden:
            return recipes.dump(self.run.recipe)
        text = yaml.safe_dump(recipe, sort_keys=False, width=100)
        return f"# Folders and files of another machine are named without their place: give your own\n{text}"


def collect_facts(folder: Path, *, checkpoint: str, weights: str | None) -> RunFacts:
    """Open a run and everything in its folder that was measured on the chosen weights.

    Raises:
        ValueError: as for `open_trained`; the run is being trained just now; or an evaluation in it is damaged.
    """
    with own_draws():
        run = open_trained(folder, checkpoint=checkpoint, weights=weights)
    run.model.cpu().eval()
    source = latest_checkpoint(folder, warn=lambda _: None, clean=False)
    if (
        source is None
        or not source.has(run.weights)
        or not same_tensors(source.tensors(run.weights), run.model.state_dict())
    ):
        raise ValueError(f"{folder} has a new checkpoint since this command began; let the training end, or try again")
    summary = files.read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    return RunFacts(run, source, summary, *_measured(run))


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _measured(run: OpenedWeights) -> tuple[tuple[Evaluation, ...], tuple[dict[str, Any], ...], tuple[str, ...]]:
    """What was measured of the run's model under attack and on corrupted images, and what was left out."""
    attacked: list[Evaluation] = []
    corrupted: list[dict[str, Any]] = []
    notes: list[str] = []
    others, model, code = 0, hash_model(run.model), reached(model=run.model).code
    for path in sorted((run.folder / "evaluation").glob(f"*/{RESULT}")):
        stored = files.read_json(path)
        if files.is_set_aside(path.parent):
            continue
        if not isinstance(stored, dict) or not ("attacks" in stored or "mean_15" in stored):
            notes.append(f"evaluation/{path.parent.name} is of no known kind; it is not in the card")
        elif (identity := stored.get("identity", {})).get("model") != model or not code.items() <= _code(identity):
            others += 1
        elif "attacks" in stored:
            attacked.append(Evaluation.read(path.parent))
        else:
            corrupted.append(stored)
    if others:
        notes.append(
            f"{others} evaluation{'s' if others > 1 else ''} of other weights or code of this run left out of the card"
        )
    own = str(run.recipe.threat)
    attacked.sort(key=lambda found: (found.threat != own, found.threat, found.robust_accuracy, -found.n))
    return tuple(attacked), tuple(corrupted), tuple(notes)


def _code(identity: dict[str, Any]) -> set[tuple[str, str]]:
    """The hashes of code that a result says it is of."""
    code = identity.get("code")
    return {(name, str(found)) for name, found in code.items()} if isinstance(code, dict) else set()


def is_strong(evaluation: Evaluation) -> bool:
    """Whether an evaluation is of AutoAttack's kind: AutoPGD with its full budget, and towards other classes too.

    The suites autoattack, autoattack-plus, aa+mt, adaptive and exhaustive are; PGD of any length and `quick` are not.
    """
    if evaluation.suite == "adaptive":
        return True
    attacks = [settings for settings in evaluation.settings.values() if "threat" not in settings]
    names = {settings.get("name") for settings in attacks if settings.get("steps", 0) >= BUDGET}
    return "apgd" in names and not names.isdisjoint(TARGETED_ATTACKS)
