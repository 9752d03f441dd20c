"""What can be evaluated, by one text: a run, an exported model, a file of weights, a network of timm's, a function.

open_subject("runs/free", data=None)
open_subject("exports/free", data="cifar10")
open_subject("wrn-34-10=trades.pt", data="cifar10", mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
open_subject("timm:resnet50", data="imagenet", size=224)
open_subject("my_model.py:build", data="photographs", size=224)
"""

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from toughen.data import ImageData, load
from toughen.data.base import Examples, first
from toughen.data.crops import ResizeCrop
from toughen.evaluation.audit.intake import normalised
from toughen.models import build, exported, load_weights, pretrained_normalization, read_state
from toughen.models.pretrained.load import networks_of
from toughen.models.pretrained.timm_hub import PREFIXES
from toughen.storage.limits import check_safetensors
from toughen.threat import Threat
from toughen.threat import parse as parse_threat
from toughen.training.setup import chosen_device
from toughen.workflows.run_folder import open_run

Fetched = TypeVar("Fetched")

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""How names of files with weights end."""


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """What an evaluation is of.

    Attributes:
        model: in the mode in which it was given.
        test: the images.
        classes: the classes' names, in the order of the labels.
        threat: the ball in which it was trained, where that is known.
        folder: where its evaluations go.
        variant: what tells these weights from the run's usual ones, for the name of the folder.
        said: what was done to open it, for the user; often nothing.
    """

    model: nn.Module
    test: Examples
    classes: tuple[str, ...]
    threat: Threat | None
    folder: Path
    variant: str = ""
    said: str = ""


def open_subject(
    what: str,
    *,
    data: str | None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    checkpoint: str = "best",
    weights: str | None = None,
) -> OpenedModel:
    """Whatever a text stands for, with the images that it is evaluated on.

    Args:
        what: one of

            - a run folder;
            - an exported model: the folder of a `toughen export`;
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

    Raises:
        ValueError: as for `open_run`, `load_model`, `load_weights` and `load`; what is named cannot be imported or
            returns no module; or an option does not go with it.
    """
    path, given = Path(what), mean is not None or std is not None
    with torch.random.fork_rng():
        if is_run(what):
            if (path / "recipe.yaml").is_file() and (data is not None or size is not None or given):
                raise ValueError(
                    "a run is evaluated on the data it was trained on; leave out --data, --size, --mean and --std, or "
                    f"export it for other data: toughen export {what} --out FOLDER"
                )
            return _open_run(path, checkpoint, weights)
        if checkpoint != "best" or weights is not None:
            raise ValueError(f"--checkpoint and --weights go with a run folder, which {what} is not; leave them out")
        if is_exported(path):
            if given:
                raise ValueError(f"{what} brings its own normalisation; leave out --mean and --std")
            return _open_exported(path, data, size)
        images = _load(what, data, ResizeCrop(size) if size else None)
        model, said = open_model(what, images, mean, std)
    folder = Path("evaluation") / re.sub(r"\W+", "-", what).strip("-")
    return OpenedModel(model.to(chosen_device("auto")), images.test, images.classes, None, folder, said=said)


def open_model(
    what: str, images: ImageData, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[nn.Module, str]:
    """A model that is no run and no exported one, for such images; and what was done to open it.

    Args:
        what: weights, a network of timm's or a function, see `open_subject`.
        images: whose classes and channels it is for.
        mean: see `open_subject`.
        std: see `open_subject`.

    Raises:
        ValueError: as for `open_subject`.
    """
    if _is_weights(what):
        return _from_weights(what, images, mean, std)
    if what.startswith(PREFIXES):
        return _pretrained(what, images, mean, std)
    return normalised(_built(what), mean, std), ""


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


def limited(test: Examples, limit: int | None) -> tuple[Examples, Tensor | None, tuple[str, ...]]:
    """The first `limit` test images, as in most papers; as many spread over all of them where these lie by class.

    Class folders are read one after another, so that the first images would be of one class.

    Returns:
        The images; their positions in the test set (limit,), None where they are the first ones; and what to note.

    Raises:
        ValueError: there are fewer.
    """
    total, labels = len(test), test.labels
    if limit is None or limit == total:
        return test, None, ()
    if limit > total:
        raise ValueError(f"limit is {limit}, but there are {total} test images; give at most that")
    if not (bool((labels[1:] >= labels[:-1]).all()) and labels[0] < labels[-1]):
        return first(test, limit), None, ()
    rows = torch.arange(limit) * total // limit
    said = f"{limit} images spread over the {total} of the test set, which lie sorted by class: "
    return test.take(rows), rows, (f"{said}the i-th, from 0, is number floor(i * {total} / {limit}) of them",)


def _load(what: str, data: str | None, view: ResizeCrop | None) -> ImageData:
    if data is None:
        raise ValueError(f"{what} is a model without data; give --data, like --data cifar10")
    try:
        return load(data, view)
    except ValueError as error:
        # Here there is no recipe whose data.size could be given.
        raise ValueError(str(error).replace("data.size, like data.size=224", "--size, like --size 224")) from None


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


def _open_run(path: Path, checkpoint: str, weights: str | None) -> OpenedModel:
    check_there(path)
    run = open_run(path, checkpoint=checkpoint, weights=weights)
    usual = run.weights == f"best-{run.recipe.headline}"
    variant = "" if usual else run.weights
    into = path / "evaluation"
    # A run that was sent by somebody must not say where on this machine is written.
    if into.is_symlink():
        raise ValueError(f"{into} is a link to another place; replace it by a folder, or give --out")
    return OpenedModel(run.model, run.data.test, run.data.classes, run.recipe.threat, into, variant, said=run.said)


def _open_exported(path: Path, data: str | None, size: int | None) -> OpenedModel:
    config = exported.read_config(path)
    if lacking := [key for key in ("view", "threat", "data") if key not in config]:
        raise ValueError(f"{path} does not say its {lacking[0]}; export the run again")
    if data is None:
        raise ValueError(f"{path} is a model without data; give --data, like --data {config['data']}")
    view = ResizeCrop(size) if size else ResizeCrop(**config["view"]) if config["view"] else None
    images = _load(str(path), data, view)
    exported.check_fits(config, data, images.classes, images.image_shape)
    model = exported.load_model(path).to(chosen_device("auto"))
    named = (path if path.is_dir() else path.parent).resolve().name
    # On the data that it was trained on, the name says enough.
    named += "" if images.name == config["data"] else "-on-" + re.sub(r"[^\w.+-]+", "-", images.name)
    folder = Path("evaluation") / named
    return OpenedModel(model, images.test, images.classes, parse_threat(config["threat"]), folder)


def _from_weights(
    what: str, images: ImageData, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[nn.Module, str]:
    """The network that a file of weights belongs to, with them, in inference mode; and what was done."""
    name, equals, file = _named(what)
    state = read_state(file)
    options: dict[str, Any] = {"num_classes": images.num_classes, "in_channels": images.channels}
    found = [row for row in networks_of(state) if row[0] == name or not equals]
    if not equals and (not found or found[0][2] < 1):
        nearest = f" (nearest: {found[0][0]})" if found else ""
        raise ValueError(
            f"{file} does not say of which network it is{nearest}; write NETWORK=FILE, like resnet18={file}"
        )
    if found:
        name, theirs, _ = found[0]
        _check_classes(file, theirs.get("num_classes", images.num_classes), images)
        options |= {key: value for key, value in theirs.items() if key not in options}
    # Its own weights are here: those of the Hub need not be fetched.
    options |= {"pretrained": False} if name.startswith(PREFIXES) else {}
    model = build(name, **options, mean=mean, std=std)
    try:
        said = f"{name}: {load_weights(model, file)}"
    except ValueError as error:
        raise ValueError(str(error).replace("; leave out its own", "; leave out --mean and --std")) from None
    model.eval()
    return model, said if not isinstance(model.normalize, nn.Identity) else f"{said}; images are not normalised"


def _pretrained(
    name: str, images: ImageData, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[nn.Module, str]:
    """A network with its pretrained weights, in inference mode; and what they are normalised by."""
    if mean is None and std is None:
        mean, std = _fetching(name, lambda: pretrained_normalization(name)) or (None, None)
        if mean is not None and len(mean) != images.channels:
            raise ValueError(
                f"{name} was trained on images of {len(mean)} channels, and those of {images.name} have "
                f"{images.channels}; give --size, like --size 224, which makes all images RGB"
            )
    options: dict[str, Any] = {"num_classes": images.num_classes, "in_channels": images.channels}
    model = _fetching(name, lambda: build(name, **options, mean=mean, std=std, pretrained=True).eval())
    # timm keeps what the weights were for; for other classes it has drawn a new head.
    _check_classes(name, getattr(model.net, "pretrained_cfg", {}).get("num_classes", images.num_classes), images)
    done = f"mean {[*mean]} and std {[*std]}" if mean is not None and std is not None else "nothing"
    return model, f"{name}: pretrained weights, normalised by {done}"


def _fetching(name: str, fetch: Callable[[], Fetched]) -> Fetched:
    try:
        return fetch()
    except ValueError as error:
        # Here there is no recipe whose model.weights could be given.
        raise ValueError(str(error).replace("with model.weights=FILE", f"as {name}=FILE")) from None


def _check_classes(what: str, theirs: int, images: ImageData) -> None:
    if theirs != images.num_classes:
        raise ValueError(
            f"{what} tells {theirs} classes apart and {images.name} has {images.num_classes} "
            f"({', '.join(images.classes[:5])}{', ...' * (images.num_classes > 5)}); give the data that it is for, "
            "or fine-tune it: toughen train finetune"
        )


def _built(reference: str) -> nn.Module:
    build = imported(reference)
    try:
        model = build() if callable(build) and not isinstance(build, nn.Module) else build
    except (Exception, SystemExit) as error:
        raise ValueError(f"{reference!r} cannot be called: {_said(error, reference)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{reference} gave {type(model).__name__}; it must be or return a torch.nn.Module")
    return model


def imported(reference: str) -> object:
    """What `package.module:name` or `path/to/file.py:name` stands for: code of the user's own, run by naming it.

    It may import what lies beside the file, or in the current folder.

    Raises:
        ValueError: there is no such module, file or name, or its code raises something.
    """
    place, _, name = reference.rpartition(":")
    # At the end, so that nothing there hides a module that is installed.
    beside = str(Path(os.path.realpath(place)).parent if place.endswith(".py") else Path.cwd())
    sys.path += [beside] if beside not in sys.path else []
    try:
        if place.endswith(".py"):
            # Under a name that is nobody's, where data classes and the like look their module up.
            spec = importlib.util.spec_from_file_location(f"__toughen__{Path(place).stem}", place)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except FileNotFoundError:
        raise ValueError(f"{reference!r} cannot be imported: there is no {place}; check the path") from None
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"{reference!r} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{reference!r} cannot be imported: {_said(error, reference)}") from error
    if not hasattr(module, name):
        raise ValueError(f"{place} has no {name!r}; give FILE.py:NAME or package.module:NAME")
    return getattr(module, name)


def _said(error: BaseException, reference: str) -> str:
    """What code of the user's own raised, and the last line of that code on the way there."""
    frames = traceback.extract_tb(error.__traceback__)
    place = Path(reference.rpartition(":")[0])
    own = [frame for frame in frames if place.suffix == ".py" and Path(frame.filename).name == place.name]
    frame = (own or frames)[-1]
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}{': ' * bool(text)}{text} ({frame.filename}, line {frame.lineno})"


def is_reference(text: str) -> bool:
    """Whether a text has the form of an import, `file.py:name` or `package.module:name`."""
    return re.fullmatch(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*", text) is not None
