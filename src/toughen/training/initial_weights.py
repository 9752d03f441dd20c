"""What training starts from: weights of somebody's, the normalisation they were trained with, a trunk that stays.

check_start(recipe)                              # before anything is fetched
start(model, recipe, note=print)                 # model.weights=resnet50.pth model.freeze=true
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toughen.models import Classifier, Normalize, freeze_trunk, load_weights, pretrained_normalization
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.schema import ChannelStatistics

TOLERANCE = 2e-3
"""How far two people's mean or std for the same weights lie apart: 0.485 and 0.4850, 0.2023 and 0.203."""

Statistics = tuple[Sequence[float], Sequence[float]]


def check_start(recipe: Recipe) -> None:
    """Refuse what contradicts itself, before weights are fetched or read.

    Raises:
        RecipeError: two answers to what training starts from, or none where the trunk is to stay; the file is not
            there; or the recipe's normalisation is not that of the pretrained weights.
    """
    model = recipe.model
    pretrained = model.settings.get("pretrained")
    if pretrained and model.weights:
        raise RecipeError(
            f"model: weights and pretrained both say what training starts from; give model.pretrained=false to use "
            f"{model.weights}, or model.weights=null"
        )
    if model.freeze and not (pretrained or model.weights):
        raise RecipeError(
            "model.freeze: what would be held fixed was never trained; give model.weights=FILE, or "
            "model.pretrained=true with a network of timm's"
        )
    if model.weights and not Path(model.weights).exists():
        raise RecipeError(
            f"model.weights: there is no file {model.weights}; give one, or a network of timm's with its weights: "
            "model=timm:resnet50 model.pretrained=true model.weights=null"
        )
    if pretrained:
        check_normalization(recipe)


def start(model: Classifier, recipe: Recipe, note: Callable[[str], None], *, fresh: bool = True) -> None:
    """Load what the recipe says that training starts from, and hold fixed what it says is to stay.

    Args:
        model: freshly built; changed in place.
        recipe: its `model` section and its `normalize`.
        note: is told what was done.
        fresh: False where a checkpoint brings the weights; then no file is read.

    Raises:
        RecipeError: the weights do not fit or bring another normalisation than the recipe's, or there is no head.
    """
    if fresh and recipe.model.settings.get("pretrained"):
        note(f"training starts from the pretrained weights of {recipe.model.name}")
    if fresh and recipe.model.weights:
        # Without a normalisation of its own, so that one from the file lands here and can be compared.
        bare = Classifier(model.net)
        try:
            loaded = load_weights(bare, recipe.model.weights, strict=False)
        except ValueError as error:
            raise RecipeError("model.weights: ", error) from None
        if loaded.normalization and not _equal(_statistics(model), loaded.normalization):
            raise RecipeError(_otherwise(f"the weights in {recipe.model.weights}", loaded.normalization, model))
        note(f"training starts from {loaded}")
    if recipe.model.freeze:
        try:
            held = freeze_trunk(model)
        except ValueError as error:
            raise RecipeError(f"model.freeze: {error}; give model.freeze=false") from None
        note(f"{held:,} weights below the head stay as they are")


def expected_normalization(recipe: Recipe, channels: int) -> dict[str, Any]:
    """Mean and std that the model's pretrained weights were trained with.

    Args:
        recipe: names the model.
        channels: of the images.

    Raises:
        RecipeError: nobody says what they are, or they are for other channels.
    """
    found = _known(recipe)
    if found is None:
        raise RecipeError(
            f"normalize: pretrained goes with a network of timm or of the Hub, and {recipe.model.name} does not say "
            'with what it was trained; write "normalize={mean: [...], std: [...]}" as the weights\' makers do'
        )
    if len(found[0]) != channels:
        raise RecipeError(
            f"normalize: {recipe.model.name} was trained on images of {len(found[0])} channels, and these have "
            f"{channels}; give data.size, like data.size=224, which makes all images RGB"
        )
    return {"mean": list(found[0]), "std": list(found[1])}


def check_normalization(recipe: Recipe) -> None:
    """Refuse pretrained weights behind another normalisation than the one they were trained with, where it is known.

    Raises:
        RecipeError: the recipe's normalisation is another.
    """
    expected, given = _known(recipe), recipe.normalize
    if expected is None or given == "pretrained":
        return
    # For grey images timm has no answer.
    if isinstance(given, ChannelStatistics) and (
        len(given.mean) != len(expected[0]) or _equal((given.mean, given.std), expected)
    ):
        return
    raise RecipeError(
        f"normalize: the weights of {recipe.model.name} were trained with {_text(expected)}, and the recipe says "
        "otherwise; write normalize=pretrained"
    )


def _known(recipe: Recipe) -> Statistics | None:
    try:
        return pretrained_normalization(recipe.model.name)
    except ValueError as error:
        raise RecipeError("model: ", error) from None


def _statistics(model: Classifier) -> Statistics | None:
    layer = model.normalize
    return (layer.mean.flatten().tolist(), layer.std.flatten().tolist()) if isinstance(layer, Normalize) else None


def _equal(given: Statistics | None, found: Statistics) -> bool:
    if given is None:
        return False
    # One number in a file stands for every channel.
    mean, std = (values if len(values) > 1 else [*values] * len(given[0]) for values in found)
    pairs = list(zip((*given[0], *given[1]), (*mean, *std), strict=False))
    return len(mean) == len(given[0]) and all(abs(a - b) <= TOLERANCE for a, b in pairs)


def _otherwise(what: str, found: Statistics, model: Classifier) -> str:
    channels = model.in_channels or len(found[0])
    mean, std = ([*values] * (channels if len(values) == 1 else 1) for values in found)
    return (
        f"normalize: {what} come with their normalisation, {_text(found)}, and the recipe says otherwise; write "
        f'"normalize={{mean: {mean}, std: {std}}}"'
    )


def _text(statistics: Statistics) -> str:
    return f"mean {[*statistics[0]]} and std {[*statistics[1]]}"
