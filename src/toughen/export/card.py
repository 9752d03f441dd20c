"""The model card: a README with a header for the Hub and prose for people, every figure from the run folder's files.

text = card(facts, licence="apache-2.0", onnx=None)
"""

import platform
import re
from typing import Any

import yaml

from toughen.errors import Command
from toughen.evaluation import Evaluation
from toughen.export.facts import RunFacts, is_strong
from toughen.export.leaderboard import other_images
from toughen.models.exported import WEIGHTS
from toughen.progress import duration
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
    parts = [_what, _measured, _corrupted, _data, _training, _limits]
    sections = [section for part in parts if (section := part(facts))]
    sections += [_loading(facts, onnx), _licence(licence), _environment(facts)]
    header = yaml.safe_dump(_header(facts, licence), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{header}---\n\n" + "\n".join("\n".join([*section, ""]) for section in sections)


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


def _what(facts: RunFacts) -> list[str]:
    recipe, config = facts.run.recipe, facts.config
    channels, height, width = config["image_shape"]
    kind = "grey" if channels == 1 else "colour" if channels == 3 else f"{channels}-channel"
    lines = [
        f"# {escape(recipe.name)}",
        "",
        f"An image classifier, `{recipe.model.name}`, trained with toughen by the method `{recipe.method.name}`. "
        f"It takes {kind} images of {height} x {width} pixels with values in [0, 1] (normalisation is inside) and "
        f"gives logits of {config['num_classes']} classes.",
    ]
    if view := config["view"]:
        lines[-1] += (
            f" Images of other sizes are brought to it thus: the short side resized to {view['resize']} pixels "
            f"(bilinear, antialiased), then the centre, {view['size']} x {view['size']}."
        )
    if facts.checkpoint.step < recipe.total_steps:
        done = f"{facts.checkpoint.step} of {recipe.total_steps} optimiser steps"
        lines += ["", f"**The training has not ended:** these weights are from a run after {done}."]
    return lines


def _measured(facts: RunFacts) -> list[str]:
    threat = facts.run.recipe.threat
    again = f"`{Command('evaluate', 'RUN', suite='autoattack')}`"
    lines = ["## Accuracy", ""]
    if not facts.evaluations:
        said = "**Not evaluated:** no test accuracy of these weights, clean or robust, was measured."
        if facts.corruptions:
            said = (
                "**Not evaluated under attack:** no robust accuracy of these weights was measured; their accuracy on "
                "test images as they are, and under common corruptions, is below."
            )
        return [*lines, f"{said} Use {again}."]
    if worst := next(iter(facts.in_the_ball), None):
        lines.append(
            f"The worst case found in {threat}: robust accuracy "
            f"**{with_interval(worst.robust_accuracy, worst.robust_interval)}** "
            f"({_suite(worst)}, {_images(facts, worst.n)})"
            + (f", **UNRELIABLE** ({', '.join(_codes(worst))})." if worst.unreliable else ".")
        )
    else:
        lines.append(f"**Not evaluated in {threat}**, the ball of its recipe; what was measured is in other balls.")
    if not any(is_strong(found) for found in facts.in_the_ball):
        lines += [
            "",
            f"**Only weak attacks were run in {threat}.** Short attacks overrate robustness, often by many points: "
            f"take the figures as upper bounds that stronger attacks will lower. Use {again}.",
        ]
    lines += [
        "",
        "| suite | within | images | clean accuracy | robust accuracy | to be believed? |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for found in facts.evaluations:
        cells = (
            escape(_suite(found)),
            found.threat,
            _images(facts, found.n),
            with_interval(found.clean_accuracy, found.clean_interval),
            with_interval(found.robust_accuracy, found.robust_interval),
            _verdict(found),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Robust accuracy counts the images that are right as they are and after every attack of the suite. In "
        "brackets: 95 % Wilson intervals. Attacks of the suites:",
        "",
    ]
    for found in facts.evaluations:
        each = (f"{row['attack']} {_left(row)}" for row in found.summary()["attacks"])
        lines.append(f"- {escape(_suite(found))}, {found.threat}, accuracy left: {escape('; '.join(each))}")
        lines += [f"  - {escape(note)}" for note in found.notes]
    for found in facts.evaluations:
        if found.unreliable and found.audit is not None:
            lines += ["", f"**UNRELIABLE** ({escape(_suite(found))}, {found.threat}):"]
            lines += [f"- {escape(finding)}" for finding in found.audit.findings]
    return lines


def _corrupted(facts: RunFacts) -> list[str]:
    """Accuracy on corrupted images, where it was measured."""
    lines = []
    for found in facts.corruptions:
        each = [f"on the images themselves {with_interval(found['clean_accuracy'], found['clean_interval'])}"]
        for count in (15, 19):
            mean = found[f"mean_{count}"]
            if mean["accuracy"] is not None:
                each.append(f"mean over {count} corruptions {with_interval(mean['accuracy'], mean['interval'])}")
        if found["mce"]["value"] is not None:
            each.append(f"mCE {found['mce']['value']:.1f} (baseline {found['mce']['baseline']})")
        kind = " ".join(
            filter(None, (found["origin"], found["constants"] and f"with the constants of {found['constants']}"))
        )
        # Published images are drawn already.
        kind += f", seed {found['seed']}" if found["origin"] == "generated" else ""
        lines.append(f"- {_images(facts, found['n'])}, corruptions {escape(kind)}: {escape('; '.join(each))}")
        lines += [f"  - {escape(note)}" for note in found["notes"]]
    return ["## Accuracy under common corruptions", "", *lines] if lines else []


def _left(row: dict[str, Any]) -> str:
    aside = row["settings"].get("threat")
    left = row["alone"] if aside else row["accuracy"]
    return f"{'-' if left is None else percent(left)}{f' (aside, {aside})' if aside else ''}"


def _codes(found: Evaluation) -> tuple[str, ...]:
    return found.audit.codes if found.audit is not None else ()


def _verdict(found: Evaluation) -> str:
    if found.audit is None:
        return "audit left out"
    if found.unreliable:
        return f"**UNRELIABLE**: {', '.join(_codes(found))}"
    return f"audit: nothing found on {found.audit.examples} images"


def _data(facts: RunFacts) -> list[str]:
    data, classes = facts.run.about, facts.run.about.classes
    shown = ", ".join(map(escape, classes[:100])) + (f", and {len(classes) - 100} more" if len(classes) > 100 else "")
    return [
        "## Data",
        "",
        f"{escape(data.name)}: {data.trained:,} images for training, {data.validated:,} held out to choose the best "
        f"weights, {data.sizes['test']:,} test images, which had no part in either. SHA-256 of the data: "
        f"`{data.fingerprint}`.",
        "",
        *[f"{escape(sentence)}\n" for sentence in other_images(facts)],
        f"Classes, in the order of the logits: {shown}.",
    ]


def _training(facts: RunFacts) -> list[str]:
    run, state = facts.run, facts.checkpoint.state
    recipe, passes = run.recipe, facts.checkpoint.state["passes"]
    ball = ball_of(recipe.method.resolved(recipe.threat))
    best = state["best"].get(run.weights.removeprefix("best-"))
    given = recipe.method.model_dump(mode="json", exclude_none=True)
    settings = ", ".join(f"{key} {value}" for key, value in given.items() if key != "name")
    where = facts.summary.get("device")
    lines = [
        "## Training",
        "",
        f"- threat model: {ball if ball else f'none in training; {recipe.threat} for validation'}"
        + (" (pixel values in [0, 1])" if ball else ""),
        f"- method: `{recipe.method.name}`" + (f" ({escape(settings)})" if settings else ""),
        f"- weights: `{run.weights}` after {run.step} of {recipe.total_steps} optimiser steps, "
        f"batches of {recipe.batch_size}",
        f"- cost: {passes['forwards']} forward and {passes['input_backwards'] + passes['full_backwards']} backward "
        f"passes of a batch in {state['step']} steps, {duration(state['seconds'])} with validation"
        + (f" on {where}" if where else ""),
    ]
    if best and run.weights.startswith("best-"):
        lines.append(
            f"- chosen on the held-out images ({recipe.selection.suite}): clean {percent(best['clean_accuracy'])}, "
            f"robust {percent(best['robust_accuracy'])}; these are no test figures"
        )
    for alarm in state["overfitting"].get("alarms", ()):
        lines.append(f"- **alarm**: {escape(alarm['alarm'])}")
    return [*lines, "", "Every setting is in `recipe.yaml`."]


def _limits(facts: RunFacts) -> list[str]:
    threat = facts.run.recipe.threat
    return [
        "## Intended use and limits",
        "",
        "For research on adversarial robustness, and as a start for fine-tuning. Images should resemble those it was "
        "trained on, in content and size, and hold values in [0, 1]: do not normalise them yourself.",
        "",
        f"Robustness was sought against {threat} only. It says nothing on larger or other changes: rotation, weather, "
        "patches, other norms. Measured robust accuracy is an upper bound, for stronger attacks may be found; nothing "
        "here is certified. Measure on your own images before you rely on it.",
    ]


def _loading(facts: RunFacts, onnx: float | None) -> list[str]:
    lines = [
        "## How to load it",
        "",
        "```python",
        "import toughen",
        "",
        'model = toughen.load_model("PATH/TO/THIS/FOLDER")',
        "logits = model(images)                          # float32 (N, C, H, W) in [0, 1]",
        "names = [model.classes[i] for i in logits.argmax(1)]",
        "```",
        "",
        f"`{WEIGHTS}` holds the weights and `config.json` what they are; the weights are `{facts.run.weights}` of a "
        f"checkpoint whose file has the SHA-256 `{facts.config['checkpoint_sha256']}`.",
    ]
    if onnx is not None:
        lines += [
            "",
            "`model.onnx` takes `images`, float32 (N, C, H, W) in [0, 1] with any N, and gives `logits`; they differ "
            f"from the model's own by at most {onnx:.1e} on the images that were tried.",
        ]
    return lines


def _licence(licence: str | None) -> list[str]:
    return ["## Licence", "", f"{escape(licence) if licence else 'Not stated.'}"]


def _environment(facts: RunFacts) -> list[str]:
    trained, summary = facts.checkpoint.state["torch"], facts.summary
    ranks = f", {summary['ranks']} rank{'s' if summary['ranks'] != 1 else ''}" if summary else ""
    return [
        "## Environment",
        "",
        f"Trained with torch {trained}{ranks}; exported by toughen {facts.config['toughen']} with Python "
        f"{platform.python_version()}.",
    ]
