"""What training starts from: weights of somebody's, the normalisation they were trained with, a trunk that stays.

recipe = as_weights_show(recipe, out, print)     # stem, width and the like, and which of a file's weights are meant
check_start(recipe)                              # before anything is fetched
start(model, recipe, note=print)                 # model.weights=resnet50.pth model.freeze=true
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toughen.errors import UsageError
from toughen.models import Classifier, Normalize, freeze_trunk, pretrained_normalization
from toughen.models.pretrained.choice import FoundNetwork, check_channels, choose, networks_of, told_apart
from toughen.models.pretrained.files import read_tensors
from toughen.models.pretrained.groups import ROOT
from toughen.models.pretrained.load import load_tensors
from toughen.models.pretrained.timm_hub import PREFIXES
from toughen.models.registry import find
from toughen.recipes import Recipe, RecipeError, load
from toughen.recipes.schema import ChannelStatistics, ModelSpec

TOLERANCE = 2e-3
"""How far two people's mean or std for the same weights lie apart: 0.485 and 0.4850, 0.2023 and 0.203."""

SHOWN = ("stem", "width", "norm", "padding")
"""Options of networks that the names and shapes of weights tell."""

CHANNELS = (3, 1)
"""Of images, where weights do not tell."""

Statistics = tuple[Sequence[float], Sequence[float]]


def as_weights_show(recipe: Recipe, out: Path, note: Callable[[str], None]) -> Recipe:
    """The recipe with what its file of weights shows of the network's options, and with the key of those weights.

    Args:
        recipe: what it says stays; what is by default gives way.
        out: the run folder. A run that was begun there knows what they showed, and they may be gone by now.
        note: is told what was found.

    Raises:
        RecipeError: the weights show something else than the recipe says, do not fit, or several that differ do.
    """
    model = recipe.model
    if model.weights and (out / "recipe.yaml").exists():
        begun = load(str(out / "recipe.yaml")).model
        said = model.model_dump(include=model.model_fields_set, exclude_none=True)
        if begun.model_dump() | said == begun.model_dump():
            return recipe.model_copy(update={"model": begun})
    # What is not there, or needs no file, is left to `check_start`.
    if not model.weights or not Path(model.weights).is_file() or model.settings.get("pretrained"):
        return recipe
    try:
        tensors = read_tensors(model.weights)
        found = _found(model, tensors)
        changed = _shown_otherwise(model, found) if found else {}
        if not model.name.startswith(PREFIXES):
            key = _key(model, tensors, {**model.settings, **changed}, found)
            changed |= {"key": key} if key not in (model.key, ROOT) else {}
    except ValueError as error:
        raise error if isinstance(error, RecipeError) else RecipeError("model.weights: ", error) from None
    if changed:
        listed = " ".join(f"model.{key}={value}" for key, value in changed.items())
        note(f"{listed}, as {model.weights} shows")
    return recipe.model_copy(update={"model": model.model_copy(update=changed)})


def _found(model: ModelSpec, tensors: Mapping[str, Tensor]) -> FoundNetwork | None:
    """The network of that name which a file's weights are of, where they can be told to be of one."""
    rows = [row for row in networks_of(tensors, model.key) if row.name == model.name]
    rows = [row for row in rows if row.share == rows[0].share]
    agreeing = [row for row in rows if not _contradicted(model, row)]
    told_apart([row.without_classes() for row in agreeing or rows], str(model.weights))
    return next(iter(agreeing or rows), None)


def _options(model: ModelSpec, found: FoundNetwork) -> dict[str, Any]:
    """What weights show of a network's options, what is by default too but for padding, which no shape tells."""
    usual = ModelSpec.model_validate({"name": model.name}).settings
    return {
        key: found.options.get(key, usual[key])
        for key in SHOWN
        if key in usual and (key != "padding" or key in found.options)
    }


def _contradicted(model: ModelSpec, found: FoundNetwork) -> dict[str, Any]:
    """What the recipe says of the options, and the weights otherwise."""
    said = {key: value for key, value in model.settings.items() if key in model.model_fields_set}
    return {key: value for key, value in _options(model, found).items() if said.get(key, value) != value}


def _shown_otherwise(model: ModelSpec, found: FoundNetwork) -> dict[str, Any]:
    if contradicted := _contradicted(model, found):
        key, value = next(iter(contradicted.items()))
        raise RecipeError(
            f"model.{key}: it is {model.settings[key]}, and the weights in {model.weights} are of {model.name} with "
            f"{key}: {value}; write model.{key}={value}, or leave model.{key} out"
        )
    return {key: value for key, value in _options(model, found).items() if model.settings[key] != value}


def _key(
    model: ModelSpec, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], found: FoundNetwork | None
) -> str:
    """Under which key a file has the weights for the network, whatever its classes.

    Raises:
        ValueError: under none, or several that differ.
    """
    for channels in (found.options["in_channels"],) if found else CHANNELS:
        with torch.device("meta"):
            net: nn.Module = find(model.name)(num_classes=10, in_channels=channels, **settings)
        try:
            return choose(net, tensors, str(model.weights), key=model.key, strict=False).group.key
        except UsageError:
            raise
        except ValueError:
            if found:
                raise
    if whole := [row for row in networks_of(tensors, model.key) if row.share == 1]:
        raise RecipeError(
            f"model: the weights in {model.weights} are of {whole[0]}, and the recipe's network is {model.name}; write "
            f"model={whole[0].name} model.weights={model.weights}"
        )
    # What does not fit for its channels alone is told once the images are known.
    return ROOT


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
        bare, file, key = Classifier(model.net), recipe.model.weights, recipe.model.key
        try:
            tensors = read_tensors(file)
            found = _found(recipe.model, tensors)
            if found and model.in_channels:
                check_channels(file, found.options["in_channels"], recipe.data.source, model.in_channels)
            loaded = load_tensors(bare, tensors, file, key=key, strict=False)
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
