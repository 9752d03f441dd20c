"""A run's line for a leaderboard: the fields of RobustBench's `model_info` files, filled with what was measured.

    entry(facts)["autoattack_acc"]                  # "45.12"

Nothing is made up: what a run folder does not say is null, for you to fill in.
"""

from typing import Any

from toughen.errors import Command, UsageError
from toughen.evaluation import Evaluation
from toughen.export.facts import RunFacts, is_strong

SUITE = "autoattack"
NORMS = {"linf": "Linf", "l2": "L2"}


def entry(facts: RunFacts) -> dict[str, Any]:
    """The fields of a leaderboard entry; accuracies are per cent as text with two decimals, as there.

    link, name, authors, venue: of a paper; null.
    dataset: name of the data.
    threat_model: "Linf" or "L2"; at RobustBench the name of the folder that the file lies in.
    eps: the radius as text, like "8/255".
    architecture: name of the network.
    additional_data: whether other images than the data set's had a part, as extra data or in the weights it began with.
        (RobustBench counts images from a generator as none; the footnote says what there was.)
    number_forward_passes: 1; no run averages over several.
    clean_acc: on the same images as autoattack_acc.
    reported: what a paper claims; null.
    autoattack_acc: under the suite `autoattack` in the run's ball, on most images.
    external: the lowest robust accuracy that another strong suite left on at least as many images, where that is
        lower; else null.
    unreliable: whether the audit found a reason not to believe autoattack_acc; null where it was left out.
    footnote: number of images where it is not the whole test split, codes of the audit, which weights, extra data.

    Raises:
        ValueError: no evaluation of these weights is of the suite `autoattack` in the run's ball.
    """
    mine = [found for found in facts.in_the_ball if found.suite == SUITE]
    recipe = facts.run.recipe
    if not mine:
        raise UsageError(
            f"{facts.run.folder} has no evaluation of {facts.run.weights} by AutoAttack in {recipe.threat}, which a "
            "leaderboard entry needs; run: ",
            Command("evaluate", facts.run.folder, suite=SUITE),
        )
    best = min(mine, key=lambda found: (-found.n, found.robust_accuracy))
    lower = [
        found.robust_accuracy
        for found in facts.in_the_ball
        if found.suite != SUITE and is_strong(found) and found.n >= best.n
    ]
    below = min(lower, default=1.0)
    norm, _, eps = best.threat.partition(":")
    return {
        "link": None,
        "name": None,
        "authors": None,
        "venue": None,
        "dataset": facts.run.about.name,
        "threat_model": NORMS.get(norm, norm),
        "eps": eps,
        "architecture": recipe.model.name,
        "additional_data": bool(other_images(facts)),
        "number_forward_passes": 1,
        "clean_acc": _percent(best.clean_accuracy),
        "reported": None,
        "autoattack_acc": _percent(best.robust_accuracy),
        "external": _percent(below) if below < best.robust_accuracy else None,
        "unreliable": None if best.audit is None else best.unreliable,
        "footnote": " ".join(_footnote(facts, best)),
    }


def other_images(facts: RunFacts) -> list[str]:
    """Sentences on images outside the data set that had a part in the training."""
    recipe = facts.run.recipe.model_dump(mode="json")
    sentences = []
    if extra := recipe["data"].get("extra"):
        name, share = extra["source"].rstrip("/").rpartition("/")[2], 1 - extra["labelled"]
        sentences.append(f"Extra, pseudo-labelled training images: {name}, {share:.0%} of each batch.")
    if weights := recipe["model"].get("weights"):
        sentences.append(f"Training began from the weights in {weights.rstrip('/').rpartition('/')[2]}.")
    elif recipe["model"].get("pretrained"):
        sentences.append("Training began from fetched weights.")
    return sentences


def _footnote(facts: RunFacts, best: Evaluation) -> list[str]:
    total = facts.run.about.sizes["test"]
    sentences = [] if best.n == total else [f"Measured on {best.n} of the {total} test images."]
    if best.unreliable and best.audit is not None:
        sentences.append(f"The audit found {', '.join(found.code for found in best.audit.reasons)}.")
    return [*sentences, f"Weights: {facts.run.weights} at step {facts.run.step}.", *other_images(facts)]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
