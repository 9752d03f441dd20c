"""The model card: a README with a header for the Hub and prose for people, every figure from the run folder's files.

The prose is in `card.jinja`, where whatever a user wrote goes through the filter `plain`.

text = card(facts, licence="apache-2.0", onnx=None)
"""

import platform
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from toughen.errors import Command
from toughen.evaluation import Evaluation
from toughen.export.facts import RunFacts, is_strong
from toughen.export.leaderboard import other_images
from toughen.progress import duration, selection_text
from toughen.report.formatting import percent, with_interval
from toughen.training.catastrophic_overfitting import ball_of

HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "imagenet": "ILSVRC/imagenet-1k",
}
"""Data sets whose name on the Hub is another than here."""

LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail", "unlicense", "other",
)  # fmt: skip
"""Identifiers that the Hub knows and people use; another one is given to it as a name."""


def card(facts: RunFacts, *, licence: str | None, onnx: float | None) -> str:
    """The card as Markdown.

    Args:
        facts: of the run.
        licence: its identifier, or None where nothing was said.
        onnx: the largest difference of a logit of the ONNX file, or None where there is none.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= FILTERS
    run, recipe, state = facts.run, facts.run.recipe, facts.checkpoint.state
    channels = facts.config["image_shape"][0]
    given = recipe.method.model_dump(mode="json", exclude_none=True)
    return environment.from_string(Path(__file__).with_name("card.jinja").read_text(encoding="utf-8")).render(
        facts=facts,
        run=run,
        recipe=recipe,
        state=state,
        passes=state["passes"],
        data=run.about,
        config=facts.config,
        licence=licence,
        onnx=onnx,
        header=yaml.safe_dump(_header(facts, licence), sort_keys=False, allow_unicode=True, width=120),
        kind={1: "grey", 3: "colour"}.get(channels, f"{channels}-channel"),
        images=partial(_images, facts),
        strong=any(map(is_strong, facts.in_the_ball)),
        again=Command("evaluate", "RUN", suite="autoattack"),
        other_images=other_images(facts),
        ball=ball_of(recipe.method.resolved(recipe.threat)),
        settings=", ".join(f"{key} {value}" for key, value in given.items() if key != "name"),
        best=state["best"].get(run.weights.removeprefix("best-")),
        python=platform.python_version(),
    )


def escape(text: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(str(text).split()))


def _header(facts: RunFacts, licence: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if licence is not None:
        known = licence.lower() in LICENCES
        found |= {"license": licence.lower()} if known else {"license": "other", "license_name": licence.lower()}
    recipe = facts.run.recipe
    found |= {
        "library_name": "toughen",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "robustness", "image-classification", recipe.method.name],
    }
    if identifier := _hub_name(facts):
        found["datasets"] = [identifier]
    if facts.evaluations:
        found |= {"metrics": ["accuracy"], "model-index": [_index(facts)]}
    return found


def _index(facts: RunFacts) -> dict[str, Any]:
    """The measured figures as the Hub reads them: fractions."""
    metrics: list[dict[str, Any]] = []
    most = max(facts.evaluations, key=lambda found: found.n)
    metrics.append(
        {"type": "accuracy", "value": most.clean_accuracy, "name": f"clean accuracy ({_images(facts, most.n)})"}
    )
    for found in facts.evaluations:
        flag = ", UNRELIABLE" if found.unreliable else ""
        name = f"robust accuracy ({_suite(found)}, {found.threat}, {_images(facts, found.n)}{flag})"
        metrics.append({"type": "accuracy", "value": found.robust_accuracy, "name": name})
    data = facts.run.about.name
    return {
        "name": facts.run.recipe.name,
        "results": [
            {
                "task": {"type": "image-classification", "name": "Image classification"},
                "dataset": {"name": data, "type": _hub_name(facts) or data, "split": "test"},
                "metrics": metrics,
            }
        ],
    }


def _hub_name(facts: RunFacts) -> str | None:
    source = facts.run.recipe.data.source
    # A data set of the Hub may have a configuration after another colon.
    return source.split(":")[1] if source.startswith("hub:") else HUB_NAMES.get(source)


def _images(facts: RunFacts, n: int) -> str:
    total = facts.run.about.sizes["test"]
    return f"{n:,} test images" if n == total else f"{n:,} of {total:,} test images"


def _suite(found: Evaluation) -> str:
    """A suite, with the seed where it is not the usual one: else two of them would look the same."""
    return f"{found.suite}, seed {found.seed}" if found.seed else found.suite


def _left(found: Evaluation) -> str:
    """Accuracy left after each attack."""
    each = []
    for row in found.summary()["attacks"]:
        aside = row["settings"].get("threat")
        left = row["alone"] if aside else row["accuracy"]
        each.append(f"{row['attack']} {percent(left)}{f' (aside, {aside})' if aside else ''}")
    return "; ".join(each)


def _codes(found: Evaluation) -> str:
    return ", ".join(one.code for one in found.audit.reasons) if found.audit is not None else ""


def _verdict(found: Evaluation) -> str:
    if found.audit is None:
        return "audit left out"
    if found.unreliable:
        return f"**UNRELIABLE**: {_codes(found)}"
    return f"audit: nothing found on {found.audit.examples} images"


def _origin(found: dict[str, Any]) -> str:
    """Where corrupted images come from."""
    constants = found["constants"] and f"with the constants of {found['constants']}"
    # Published images are drawn already.
    seed = f", seed {found['seed']}" if found["origin"] == "generated" else ""
    return " ".join(filter(None, (found["origin"], constants))) + seed


def _corrupted(found: dict[str, Any]) -> str:
    """Accuracy on corrupted images, as far as it was measured."""
    each = [f"on the images themselves {with_interval(found['clean_accuracy'], found['clean_interval'])}"]
    for count in (15, 19):
        mean = found[f"mean_{count}"]
        if mean["accuracy"] is not None:
            each.append(f"mean over {count} corruptions {with_interval(mean['accuracy'], mean['interval'])}")
    if found["mce"]["value"] is not None:
        each.append(f"mCE {found['mce']['value']:.1f} (baseline {found['mce']['baseline']})")
    return "; ".join(each)


FILTERS: dict[str, Callable[[Any], object]] = {
    "plain": escape,
    "thousands": "{:,}".format,
    "percent": percent,
    "duration": duration,
    "chosen_by": selection_text,
    "suite": _suite,
    "clean": lambda found: with_interval(found.clean_accuracy, found.clean_interval),
    "robust": lambda found: with_interval(found.robust_accuracy, found.robust_interval),
    "left": _left,
    "codes": _codes,
    "notes": lambda found: (*found.notes, *(found.audit.notes if found.audit is not None else ())),
    "verdict": _verdict,
    "origin": _origin,
    "corrupted": _corrupted,
}
"""What the template makes of an evaluation, a measurement under corruptions, a number or a text."""
