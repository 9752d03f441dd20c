"""What can be evaluated, by one text: a run, an exported model, a file of weights, a network of timm's, a function.

open("runs/free")
open(ModelSource("exports/free", data="cifar10"))
open(ModelSource("wrn-34-10=trades.pt", data="cifar10", mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)))
open(ModelSource("timm:resnet50", data="imagenet", size=224))
open(ModelSource("my_model.py:build", data="photographs", size=224))
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toughen.data import ImageData, load
from toughen.data.base import Examples, check_several_classes
from toughen.data.crops import ResizeCrop
from toughen.data.decode import numbered
from toughen.devices import own_draws, placed
from toughen.errors import Command, Option, UsageError, naming
from toughen.models import build, exported, pretrained_normalization
from toughen.models.classifier import normalised
from toughen.models.inputs import check_radius
from toughen.models.pretrained.choice import check_channels, networks_of, told_apart
from toughen.models.pretrained.files import read_tensors
from toughen.models.pretrained.load import load_tensors
from toughen.models.pretrained.timm_hub import PREFIXES
from toughen.parallel import ranks
from toughen.storage.limits import check_safetensors
from toughen.threat import Threat
from toughen.threat import parse as parse_threat
from toughen.training.setup import chosen_device
from toughen.workflows.evaluated_images import check_classes, fewer_names, for_classes, may_lack_classes, unseen, used
from toughen.workflows.run_folder import open_run
from toughen.workflows.user_code import built, is_reference

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""How names of files with weights end."""

NORMALISATION = (Option("mean"), " and ", Option("std"))


@dataclass(frozen=True)
class ModelSource:
    """What a user names as a model, and how it is fed.

    Attributes:
        what: one of

            - a run folder;
            - an exported model: its folder;
            - a file of weights, alone where its network can be told from it, else as `NETWORK=FILE`;
            - `timm:NAME` or `hub:OWNER/NAME`, with its pretrained weights and the normalisation that goes with them;
            - `FILE.py:FUNCTION` or `package.module:FUNCTION`, a function without arguments that returns a module which
              maps images in [0, 1] to logits.
        data: data set of all but a run, which brings its own.
        size: side to which images are brought (see `ResizeCrop`); None for what an exported model was trained on, for
            everything else images as they are.
        mean: a first layer that normalises, together with `std`; for all but a run and an exported model.
        std: see `mean`.
        checkpoint: of a run, see `open_run`.
        weights: of a run, see `open_run`.
        key: of a file of weights that holds several that fit, see `load_weights`.
    """

    what: str
    data: str | None = None
    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    checkpoint: str = "best"
    weights: str | None = None
    key: str | None = None

    @property
    def path(self) -> Path:
        """The text as a path."""
        return Path(self.what)

    @property
    def view(self) -> ResizeCrop | None:
        """Of the images, where a size was named."""
        return ResizeCrop(self.size) if self.size else None

    @property
    def normalises(self) -> bool:
        """Whether a first layer that normalises was named."""
        return self.mean is not None or self.std is not None

    @property
    def fed(self) -> bool:
        """Whether it says what the model is fed with."""
        return self.data is not None or self.size is not None or self.normalises


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model with the images that it is evaluated on.

    Attributes:
        source: what it was opened from.
        model: in the mode in which it was given.
        test: the images.
        classes: the classes' names, in the order of the labels; empty where they are only numbered, and the images may
            not show all of them.
        threat: the ball in which it was trained, where that is known.
        folder: where its evaluations go.
        variant: what tells these weights from the run's usual ones, for the name of the folder.
        said: what was done to open it, for the user; often nothing.
        used: which images of its data these are, for the user and the reader of a result; empty for a run's test split.
    """

    source: ModelSource
    model: nn.Module
    test: Examples
    classes: tuple[str, ...]
    threat: Threat | None
    folder: Path
    variant: str = ""
    said: str = ""
    used: str = ""

    @property
    def facts(self) -> tuple[str, ...]:
        """What a reader of a result should know: a file's weights, which images were taken, classes that they lack."""
        weights = self.said if _is_weights(self.source.what) else ""
        return tuple(filter(None, (weights, self.used, fewer_names(self.model, self.classes, self.test))))

    def ball(self, threat: str | None) -> Threat:
        """The ball that a text names; without one that in which it was trained.

        Raises:
            ValueError: neither is known.
        """
        if threat is not None:
            return check_radius(parse_threat(threat))
        if self.threat is None:
            what = self.source.what
            raise UsageError(f"{what} does not say within which ball; give ", Option("threat", like="linf:8/255"))
        return self.threat

    def joined(self) -> AbstractContextManager[None]:
        """The other processes that torchrun started, if any, on the model's device: see `ranks.group`."""
        return ranks.group(torch.device(next(self.model.parameters(), torch.zeros(())).device))


def as_source(source: ModelSource | Path | str) -> ModelSource:
    """A model's source; a text or path alone says what it is."""
    return source if isinstance(source, ModelSource) else ModelSource(str(source))


@naming(size="size")
def open(source: ModelSource | Path | str) -> OpenedModel:
    """Whatever a source stands for, with the images that it is evaluated on.

    Raises:
        ValueError: as for `open_run`, `load_model`, `load_weights` and `load`; what is named cannot be imported or
            returns no module; or an option does not go with it.
    """
    source = as_source(source)
    refuse_key(source)
    what, path = source.what, source.path
    with own_draws(chosen_device("auto")):
        if is_run(what):
            if (path / "recipe.yaml").is_file() and source.fed:
                raise UsageError(
                    "a run is evaluated on the data it was trained on; leave out ",
                    *(Option("data"), ", ", Option("size"), ", ", *NORMALISATION),
                    ", or export it for other data: ",
                    Command("export", what, out="FOLDER"),
                )
            return _open_run(source)
        refuse_run_options(source)
        if is_exported(path):
            refuse_normalisation(source)
            return _open_exported(source)
        if source.data is None:
            raise _without_data(source, "cifar10")
        images = load(source.data, source.view, whole=True)
        # A class that has a number may be one of many that the model knows; a folder is no number.
        if not numbered(images.classes):
            check_several_classes(images)
        model, said = build_model(source, images)
    named = f"{what}-{source.key}" if source.key else what
    folder = Path("evaluation") / re.sub(r"\W+", "-", named).strip("-")
    model, classes = placed(model, chosen_device("auto")), () if may_lack_classes(images) else images.classes
    return OpenedModel(source, model, images.test, classes, None, folder, said=said, used=used(images))


def refuse_run_options(source: ModelSource) -> None:
    """Refuse what only a run has.

    Raises:
        ValueError: a checkpoint or weights were named.
    """
    if source.checkpoint != "best" or source.weights is not None:
        options = (Option("checkpoint"), " and ", Option("weights"))
        raise UsageError(*options, f" go with a run folder, which {source.what} is not; leave them out")


def refuse_key(source: ModelSource) -> None:
    """Refuse to choose from what is no file of weights.

    Raises:
        ValueError: a key was named.
    """
    if source.key is not None and (not _is_weights(source.what) or is_exported(source.path)):
        raise UsageError(Option("key"), f" goes with a file of weights, which {source.what} is not; leave it out")


def refuse_normalisation(source: ModelSource) -> None:
    """Refuse a second normalisation.

    Raises:
        ValueError: one was named.
    """
    if source.normalises:
        raise UsageError(f"{source.what} brings its own normalisation; leave out ", *NORMALISATION)


def _without_data(source: ModelSource, like: str) -> UsageError:
    return UsageError(f"{source.what} is a model without data; give ", Option("data", like=like))


def build_model(source: ModelSource, images: ImageData) -> tuple[nn.Module, str]:
    """A model that is no run and no exported one, for images of such classes and channels; and what was done.

    Raises:
        ValueError: as for `open`.
    """
    if _is_weights(source.what):
        return _from_weights(source, images)
    if source.what.startswith(PREFIXES):
        return _pretrained(source, images)
    return normalised(built(source.what), source.mean, source.std), ""


def is_exported(path: Path) -> bool:
    """Whether a path is an exported model: its folder, or its `model.safetensors` alone."""
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors import SafetensorError, safe_open

        check_safetensors(path)
        try:
            with safe_open(path, framework="pt") as opened:
                return "toughen" in (opened.metadata() or {})
        except SafetensorError:
            return False
    return exported.is_exported(path)


def is_run(what: str) -> bool:
    """Whether a text is, or can only have been meant as, a run folder.

    Raises:
        ValueError: it is a folder with half of an exported model.
    """
    path = Path(what)
    if path.is_dir():
        exported.check_whole(path)
        return not exported.is_exported(path)
    return not (_is_weights(what) or what.startswith(PREFIXES) or is_reference(what))


def _is_weights(what: str) -> bool:
    _, equals, file = _named(what)
    return what.endswith(WEIGHTS) or bool(equals and Path(file).is_file())


def _named(what: str) -> tuple[str, str, str]:
    """Network, equals sign and file of `NETWORK=FILE`; the first two empty for a file, whatever its name."""
    return ("", "", what) if "=" not in what or Path(what).is_file() else what.partition("=")


def folder_of(opened: OpenedModel, *parts: str, images: int, seed: int, after: Sequence[str] = ()) -> Path:
    """Where a result of a model goes by default: a folder named after what is measured and what is unusual."""
    parts += (f"n{images}" if images < len(opened.test) else "", opened.variant, f"seed{seed}" if seed else "")
    return opened.folder / "_".join(part for part in (*parts, *after) if part)


def check_there(path: Path) -> None:
    """Refuse what can only have been meant as a run folder and is not there at all.

    Raises:
        ValueError: there is nothing of that name.
    """
    if not path.exists():
        raise ValueError(
            f"there is no {path}; give a run folder, an exported model, a file of weights (NETWORK=FILE), timm:NAME or "
            "FILE.py:FUNCTION"
        )


def _open_run(source: ModelSource) -> OpenedModel:
    check_there(source.path)
    run = open_run(source.path, checkpoint=source.checkpoint, weights=source.weights)
    usual = run.weights == f"best-{run.recipe.headline}"
    variant = "" if usual else run.weights
    into = source.path / "evaluation"
    # A run that was sent by somebody must not say where on this machine is written.
    if into.is_symlink():
        raise UsageError(f"{into} is a link to another place; replace it by a folder, or give ", Option("out"))
    images = run.data
    which = used(images) if images.test_part != "test" or images.notes else ""
    return OpenedModel(
        source, run.model, images.test, images.classes, run.recipe.threat, into, variant, run.said, which
    )


def _open_exported(source: ModelSource) -> OpenedModel:
    path, config = source.path, exported.read_config(source.path)
    if lacking := [key for key in ("view", "threat", "data") if key not in config]:
        raise ValueError(f"{path} does not say its {lacking[0]}; export the run again")
    if source.data is None:
        raise _without_data(source, config["data"])
    name = source.data
    images = load(name, view_of(source, config), whole=True)
    shown = for_classes(images, config["num_classes"]).classes
    exported.check_fits(config, name, shown, images.image_shape)
    images = unseen(source.what, images, config, lambda: load(name, trained_view(config), whole=True))
    model = placed(exported.load_model(path), chosen_device("auto"))
    named = (path if path.is_dir() else path.parent).resolve().name
    # On the data that it was trained on, the name says enough.
    named += "" if images.name == config["data"] else "-on-" + re.sub(r"[^\w.+-]+", "-", images.name)
    folder = Path("evaluation") / named
    classes = tuple(config["classes"]) if numbered(images.classes) else images.classes
    return OpenedModel(source, model, images.test, classes, parse_threat(config["threat"]), folder, used=used(images))


def view_of(source: ModelSource, config: Mapping[str, Any]) -> ResizeCrop | None:
    """Of the images of an exported model: as named, or else as it was trained on."""
    return source.view or _view(config["view"])


def trained_view(config: Mapping[str, Any]) -> ResizeCrop | None:
    """Of the images that an exported model was trained on."""
    return _view(config.get("trained_view", config["view"]))


def _view(described: Mapping[str, Any] | None) -> ResizeCrop | None:
    return ResizeCrop(**described) if described else None


def _from_weights(source: ModelSource, images: ImageData) -> tuple[nn.Module, str]:
    """The network that a file of weights belongs to, with them, in inference mode; and what was done."""
    name, equals, file = _named(source.what)
    tensors = read_tensors(file)
    options: dict[str, Any] = {"num_classes": images.num_classes, "in_channels": images.channels}
    found = [row for row in networks_of(tensors, source.key) if row.name == name or not equals]
    # A teacher and its student may tell different classes apart.
    found.sort(
        key=lambda row: (row.share < 1, row.options.get("num_classes", images.num_classes) != images.num_classes)
    )
    if not equals and (not found or found[0].share < 1):
        nearest = f" (nearest: {found[0].name})" if found else ""
        raise ValueError(
            f"{file} does not say of which network it is{nearest}; write NETWORK=FILE, like resnet18={file}"
        )
    if not equals:
        told_apart(found, file)
    if found:
        name, theirs = found[0].name, found[0].options
        images = for_classes(images, theirs.get("num_classes"))
        options["num_classes"] = images.num_classes
        check_classes(file, theirs.get("num_classes", images.num_classes), images)
        check_channels(file, theirs["in_channels"], images.name, images.channels)
        options |= {key: value for key, value in theirs.items() if key not in options}
    # Its own weights are here: those of the Hub need not be fetched.
    options |= {"pretrained": False} if name.startswith(PREFIXES) else {}
    model = build(name, **options, mean=source.mean, std=source.std)
    said = f"{name}: {load_tensors(model, tensors, file, key=source.key)}"
    model.eval()
    return model, said if not isinstance(model.normalize, nn.Identity) else f"{said}; images are not normalised"


def _pretrained(source: ModelSource, images: ImageData) -> tuple[nn.Module, str]:
    """A network with its pretrained weights, in inference mode; and what they are normalised by."""
    name, mean, std = source.what, source.mean, source.std
    options: dict[str, Any] = {"num_classes": images.num_classes, "in_channels": images.channels}
    with naming(weights=Option("what", f"{name}=FILE")):
        if not source.normalises:
            mean, std = pretrained_normalization(name) or (None, None)
            if mean is not None:
                check_channels(name, len(mean), images.name, images.channels)
        model = build(name, **options, mean=mean, std=std, pretrained=True).eval()
        # timm keeps what the weights were for; for other classes it has drawn a new head.
        theirs = getattr(model.net, "pretrained_cfg", {}).get("num_classes", images.num_classes)
        if theirs != images.num_classes and (images := for_classes(images, theirs)).num_classes == theirs:
            options["num_classes"] = theirs
            model = build(name, **options, mean=mean, std=std, pretrained=True).eval()
    check_classes(name, theirs, images)
    done = f"mean {[*mean]} and std {[*std]}" if mean is not None and std is not None else "nothing"
    return model, f"{name}: pretrained weights, normalised by {done}"
