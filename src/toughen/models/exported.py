"""Exported models: the one file that holds a network's weights and all that is needed to build it again.

`model.safetensors` carries its own description, so that it works alone; `config.json` beside it says the same to
people, with the SHA-256 of every file, for safetensors notices no flipped bit. Networks are looked up by name and never
imported: nothing in the file is code.

    model = load_model("exports/mine")              # a Classifier, in inference mode, with `.classes`
    logits = model(images)                          # images (N, C, H, W) in [0, 1]
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from toughen import models
from toughen.devices import own_draws
from toughen.errors import Command, Option, UsageError
from toughen.models import Classifier
from toughen.models.classifier import Normalize, PerImageStandardize
from toughen.models.pretrained.load import fitted
from toughen.models.pretrained.timm_hub import PREFIXES
from toughen.storage import files
from toughen.storage.checkpoint import serialise
from toughen.storage.limits import check_safetensors

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1

Config = dict[str, Any]
"""What is known of a model, in JSON's types:

    format, toughen         of this description, and the version that wrote it
    architecture            {"name": ..., "options": {...}}, as `models.build` takes them
    num_classes, in_channels, image_shape [C, H, W], classes [name, ...]
    normalization           see `normalization`
    view                    {"size", "resize"}: the short side was resized, the centre taken; null: as the images are
    threat                  the ball it was trained for, like linf:8/255
    recipe, method, data    their names
    fingerprints            of the data's splits, by which it is known again what the model was trained on
    trained_view            {"size", "resize", "area"}: of the images in those fingerprints, as in the recipe; or null
    weights, step           which of the run's weights, and the optimiser steps behind them
    checkpoint_sha256       of the file of the run's checkpoint that they came from
"""


def normalization(model: Classifier) -> dict[str, Any]:
    """The first layer in JSON's types: `{"kind": "none"}`, "per_image", or "mean_std" with both lists."""
    layer = model.normalize
    if isinstance(layer, Normalize):
        return {"kind": "mean_std", "mean": layer.mean.flatten().tolist(), "std": layer.std.flatten().tolist()}
    return {"kind": "per_image" if isinstance(layer, PerImageStandardize) else "none"}


def to_bytes(model: Classifier, config: Config) -> bytes:
    """A model as a safetensors file that describes itself; equal bytes for equal weights and descriptions."""
    # One entry: the order of several would change from call to call.
    return serialise(model.state_dict(), {"toughen": json.dumps(config, allow_nan=False)})


def is_exported(path: Path) -> bool:
    """Whether a folder has the two files of an exported model."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def check_whole(path: Path) -> None:
    """Refuse a folder that has one of the two files of an exported model, and not the other.

    Raises:
        ValueError: says which is missing.
    """
    there = [name for name in (WEIGHTS, CONFIG) if (path / name).is_file()]
    if len(there) == 1:
        missing = CONFIG if there == [WEIGHTS] else WEIGHTS
        alone = f", or give {path / WEIGHTS}, which works alone" if there == [WEIGHTS] else ""
        raise ValueError(
            f"{path} has {there[0]} but no {missing}, so it is no whole exported model; export again{alone}"
        )


def read_config(path: Path | str) -> Config:
    """What a folder, or its `model.safetensors` alone, says of the model; the weights are not read.

    Raises:
        ValueError: there is no such file, it is not an exported model of toughen's, or `config.json` says otherwise.
    """
    from safetensors import SafetensorError, safe_open

    file = _weights_file(Path(path))
    check_safetensors(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise files.Damaged(file, f"{file.name}: {error}") from None
    try:
        config = files.decode(metadata["toughen"].encode(), file)
        known = config["format"] == FORMAT
    except (KeyError, TypeError):
        raise ValueError(
            f"{file} does not say how to build its model, so toughen export did not write it; "
            "build the network yourself and use toughen.models.load_weights"
        ) from None
    if not known:
        raise ValueError(f"{file} has format {config['format']}, this toughen reads format {FORMAT}; update toughen")
    _check(config, file)
    if (beside := file.with_name(CONFIG)).is_file() and file.name == WEIGHTS:
        said = files.read_json(beside)
        for key, value in config.items():
            if not isinstance(said, dict) or said.get(key) != value:
                raise ValueError(
                    f"{beside} says something else on {key} than {WEIGHTS} beside it; export the run again"
                )
    return config


def load_model(path: Path | str) -> Classifier:
    """The model in an exported folder, on the CPU, in inference mode.

    Args:
        path: a folder of `toughen export`, or its `model.safetensors` alone.

    Returns:
        A classifier of images (N, C, H, W) in [0, 1] that gives the very logits of the one that was exported. Its
        `classes` are the names of the classes, a tuple in the order of the logits.

    Raises:
        ValueError: as for `read_config`; or the network is not known here, or the weights do not fit it.
        Damaged: a file is not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    file, config = _weights_file(Path(path)), read_config(path)
    data = file.read_bytes()
    if (beside := file.with_name(CONFIG)).is_file() and file.name == WEIGHTS:
        written = files.read_json(beside).get("files", {}).get(WEIGHTS)
        if written != hashlib.sha256(data).hexdigest():
            raise files.Damaged(file.parent, f"hash mismatch in {WEIGHTS}")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise files.Damaged(file, f"{file.name}: {error}") from None
    model = fitted(lambda: _build(config, file), tensors, str(file), config["architecture"]["name"])
    # Not in the state, and no plain number or text, so the model's hash in evaluations is that of the run's own.
    vars(model)["classes"] = tuple(config["classes"])
    return model.eval()


def check_fits(config: Config, name: str, classes: Sequence[str], shape: Sequence[int]) -> None:
    """Refuse a data set that an exported model cannot be judged on.

    Names are the same whatever their case and whatever parts their words. Classes that were only numbered, 0 to K - 1,
    fit any of their number.

    Args:
        config: of the model.
        name: of the data set.
        classes: its classes' names.
        shape: (C, H, W) of its images.

    Raises:
        ValueError: another number of classes or channels, other classes, or the same ones in another order.
    """
    if len(classes) != config["num_classes"]:
        raise ValueError(
            f"the model tells {config['num_classes']} classes apart and {name} has {len(classes)}; "
            f"give data with the classes {', '.join(map(str, config['classes'][:10]))}"
        )
    if shape[0] != config["in_channels"]:
        raise ValueError(
            f"the model takes images of {config['in_channels']} channels and those of {name} have {shape[0]}"
        )
    theirs, numbers = list(map(str, config["classes"])), list(map(str, range(len(classes))))
    permuted = sorted(classes) == sorted(theirs)
    if not permuted and numbers in (list(classes), theirs):
        return
    same = str if permuted else _spelt
    different = (i for i, (a, b) in enumerate(zip(classes, theirs, strict=True)) if same(a) != same(b))
    if (first := next(different, None)) is not None:
        remedy = (
            "bring the data's classes into the model's order"
            if permuted
            else "give data with the model's classes, or name them alike if they are the same"
        )
        raise ValueError(f"class {first} is {theirs[first]!r} for the model and {classes[first]!r} in {name}; {remedy}")


def _spelt(name: str) -> str:
    """A name without what spellings of it differ in: `big_cat` is `Big cat`."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", name).casefold()).strip() or name


def _weights_file(path: Path) -> Path:
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"{path} holds no exported model ({WEIGHTS}); give the ", Option("out"), " of a ", Command("export")
        )
    return file


class _StrictDescription(BaseModel):
    model_config = ConfigDict(strict=True)


class _Architecture(_StrictDescription):
    name: str
    options: dict[str, Any]


class _ViewDescription(_StrictDescription):
    model_config = ConfigDict(extra="forbid")
    size: PositiveInt
    resize: PositiveInt | None = None
    area: float = 1.0


class _Description(_StrictDescription):
    """What must be of some type in a description, for who reads it relies on that."""

    architecture: _Architecture
    num_classes: PositiveInt
    in_channels: PositiveInt
    classes: list[str]
    normalization: dict[str, str | list[float]]
    view: _ViewDescription | None = None
    threat: str = ""
    data: str = ""
    fingerprints: dict[str, str] = {}
    trained_view: _ViewDescription | None = None


def _check(config: Config, file: Path) -> None:
    try:
        found = _Description.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{file} does not say how to build its model as toughen export does ({place}: {first['msg']})"
        ) from None
    if len(found.classes) != found.num_classes:
        raise ValueError(f"{file} names {len(found.classes)} classes and has {found.num_classes}; export the run again")


def _build(config: Mapping[str, Any], file: Path) -> Classifier:
    try:
        found, options = config["normalization"], dict(config["architecture"]["options"])
        given = {
            "name": config["architecture"]["name"],
            "num_classes": config["num_classes"],
            "in_channels": config["in_channels"],
            "mean": found["mean"] if found["kind"] == "mean_std" else None,
            "std": found["std"] if found["kind"] == "mean_std" else None,
            "per_image": found["kind"] == "per_image",
        }
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file} does not say how to build its model; export the run again") from None
    # The weights are here: nothing is to be fetched for a network that was trained from fetched ones.
    fetched = given["name"].startswith(PREFIXES)
    options |= {"pretrained": False} if fetched or "pretrained" in options else {}
    try:
        with own_draws():
            return models.build(**given, **options)
    except (ValueError, TypeError, RuntimeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{file} cannot be built here: {str(error).partition(chr(10))[0]}") from None
