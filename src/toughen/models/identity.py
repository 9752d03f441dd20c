"""Whose result lies in a folder: what it is of, whether the model answers as it did, and what becomes of the rest.

    identity = identity_of(model=hash_model(net), data=hash_tensor(x, y), threat=threat_in_full(ball), seed=0)
    look = partial(answers_of, {"model": (net, x)}, batch_size=256)
    found, said = recognise(folder, folder / "identity.json", identity, look)
    claim(folder, folder / "identity.json", found or begun(folder, identity, look))

A result is gone on with, or shown again, only if all that it was begun with is the same: weights, data and settings,
the code that the model, the attacks and the ball reach outside installed packages, the values that these keep, and the
logits of the first clean images, which are compared with a tolerance, on other machines too. What is known to differ is
refused (EV271). What cannot be told is kept under another name, and computed anew.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from toughen import __version__
from toughen.devices import own_draws
from toughen.errors import Part, UsageError
from toughen.models import batched
from toughen.models.adapted import adapt, check_logits, half_of
from toughen.models.batched import Batched
from toughen.models.hashes import hash_tensor
from toughen.models.inputs import as_input, placement
from toughen.models.prepared import inference
from toughen.models.reached_code import reached
from toughen.models.refusals import naming_theirs
from toughen.modes import plain
from toughen.settings import shown
from toughen.storage import files
from toughen.threat import L2, Linf, Threat

Identity = dict[str, Any]

CLEAN_LOGITS = "clean_logits.safetensors"
"""The model's logits for the first clean images, in every folder of results."""

FIRST = 1024
"""Images whose logits are kept at most."""

TOLERANCE, HALF_TOLERANCE = 1e-3, 3e-2
"""See `Answers`: of a model in single, and in half precision."""

_DIFFERS = {
    "model": "another model (or other weights of it)",
    "data": "other images, labels or ids",
    "images": "another number of images",
    "threat": "another threat model",
    "settings": "other attacks, corruptions or settings",
    "seed": "another seed",
    "chunk_size": "another chunk_size",
    "order": "another order of the attacks (cascade or independent)",
    "keep": "another choice of what to keep",
    "audit": "another choice of whether to audit",
    "radii": "other radii of the training images",
    "version": "another version of toughen",
    "code": "other code",
    "values": "another value",
}
"""What may differ between two identities, in the words of the refusal."""

_SHOWN = ("images", "threat", "seed", "chunk_size", "version", "order")
"""What is short enough to be shown; of a hash its first figures are."""


def identity_of(**parts: Any) -> Identity:
    """What a result is of, as it will be read back from JSON: the parts, and the version of toughen."""
    return files.decode(files.encode({"version": __version__, **parts}), Path("identity"))


def threat_in_full(threat: Threat) -> str:
    """The threat model as text that differs where it does: by radii, and by all that one of another type keeps."""
    known = type(threat) in (Linf, L2)
    if known:
        return f"{threat} {hash_tensor(threat.eps)}" if isinstance(threat.eps, Tensor) else str(threat)
    return f"{threat} {type(threat).__qualname__} {reached(threat=threat).values['threat']}"


@dataclass(frozen=True, eq=False)
class Answers:
    """What models answered to some clean images, and what they and what attacks them are made of.

    Attributes:
        logits: (N, K) on the CPU, by the name of the model.
        tolerance: by the name of the model, how far the logits of one model may lie apart on two machines, as a share
            of an image's largest.
        parts: for the identity: hashes of code and values, names of the values that a pass changes, which are the
            model's memory and tell nothing, and the Python and torch whose hashes these are.
        again: the logits once more, with other random draws.
    """

    logits: dict[str, Tensor]
    tolerance: dict[str, float]
    parts: dict[str, Any]
    again: Callable[[], dict[str, Tensor]]

    def write(self, folder: Path) -> None:
        """Keep the logits."""
        data = save(self.logits)
        files.replace_by(folder / CLEAN_LOGITS, lambda path: path.write_bytes(data))


def answers_of(
    models: dict[str, tuple[nn.Module, Tensor]], *, batch_size: int, also: dict[str, object] | None = None
) -> Answers:
    """One clean pass of each image by each model, which are left as they were.

    Args:
        models: each with its images (N, C, H, W), by name; of more than `FIRST` the first.
        batch_size: images in a pass.
        also: what else the result hangs on: functions, balls.
    """
    models = {name: (model, x[:FIRST]) for name, (model, x) in models.items()}
    roots = {name: model for name, (model, _) in models.items()} | (also or {})
    before = reached(**roots).values

    def run(seed: int) -> dict[str, Tensor]:
        return {name: _logits(model, x, batch_size, seed) for name, (model, x) in models.items()}

    logits, after = run(0), reached(**roots)
    changing = sorted(name for name in before | after.values if before.get(name) != after.values.get(name))
    made = f"Python {sys.version_info[0]}.{sys.version_info[1]}, torch {torch.__version__}"
    values = {name: found for name, found in after.values.items() if name not in changing}
    parts = {"code": after.code, "values": values, "changing": changing, "made": made}
    tolerance = {name: HALF_TOLERANCE if half_of(model) else TOLERANCE for name, (model, _) in models.items()}
    return Answers(logits, tolerance, parts, lambda: run(1))


def _logits(model: nn.Module, x: Tensor, batch_size: int, seed: int) -> Tensor:
    """Logits (N, K) of images on the CPU, in inference mode and under these random draws."""
    adapted = adapt(plain(model))
    device, dtype = placement(adapted, x)
    with (
        own_draws(device),
        inference(adapted, device, fast=False),
        naming_theirs(),
    ):
        torch.manual_seed(seed)
        logits = batched.predict(Batched(adapted, batch_size), as_input(x, device, dtype))
    check_logits(logits, len(x))
    return logits.cpu().contiguous()


def recognise(
    folder: Path,
    path: Path,
    identity: Identity,
    look: Callable[[], Answers],
    *,
    of: str = "an evaluation",
    remedy: Sequence[Part] = ("give another folder, or delete it",),
    **called: str,
) -> tuple[Identity | None, str]:
    """Whether what a folder holds is of an identity; what cannot be told is moved out of the way.

    Args:
        folder: of the result.
        path: the file with the identity that was found there, itself or under the key `identity`.
        identity: the one at hand, without the parts of `Answers`.
        look: gives the answers at hand; called only where all else is equal, as it takes a clean pass.
        of: what the folder holds.
        remedy: what to do.
        called: other words for what may differ than the usual ones.

    Returns:
        The identity that was found there, which is the one at hand; None where there is nothing to go on with. And what
        a reader should know: where an earlier result was put.

    Raises:
        ValueError: EV271, with the first thing that differs, in figures where they are short.
    """
    if not path.is_file():
        return None, ""
    found = files.read_json(path)
    found = found.get("identity", found) if isinstance(found, dict) else found
    words = {"of": of, "remedy": remedy, **called}
    refuse_other(folder, found, identity, **words)
    unknown = _unknown(folder, found)
    if not unknown:
        answers = look()
        unknown = _compared(folder, found, answers, words)
    if not unknown:
        return found, ""
    kept = files.set_aside(folder)
    return None, f"{folder} held {of} that {unknown}: it is kept as {kept.name}, and this was computed anew"


def _unknown(folder: Path, found: Any) -> str:
    """Why a result cannot be told to be of any model; empty where it can."""
    kinds = {"code": dict, "values": dict, "changing": list, "made": str}
    if not isinstance(found, dict) or any(not isinstance(found.get(name), kind) for name, kind in kinds.items()):
        return "says nothing of the code of its model"
    sound = False
    with suppress(OSError, SafetensorError, ValueError):
        stored = load_file(folder / CLEAN_LOGITS).values()
        sound = all(logits.ndim == 2 and len(logits) and logits.is_floating_point() for logits in stored)
    return "" if sound else "keeps no clean logits of its model"


def _compared(folder: Path, found: Identity, answers: Answers, words: dict[str, Any]) -> str:
    """Refuse another model's result; what cannot be told is said."""
    skipped = {*map(str, found["changing"]), *answers.parts["changing"]}
    for kind in ("code", "values"):
        then, now = found[kind], answers.parts[kind]
        names = differing(then, now, skipped)
        if names and found["made"] != answers.parts["made"]:
            made = shown(found["made"])[1:-1]
            return f"was made with {made}, whose code cannot be compared with that of {answers.parts['made']}"
        if names:
            called = words | {kind: f"{_DIFFERS[kind]} of {names}"}
            refuse_other(folder, {kind: 0}, {kind: 1}, **called)
    stored = load_file(folder / CLEAN_LOGITS)
    apart = _apart(stored, answers.logits, answers.tolerance)
    # One that draws at random answers otherwise each time: its weights and its code have decided.
    if apart and not _apart(answers.again(), answers.logits, answers.tolerance):
        words["model"] = f"a model that gave other logits for the same images: {apart}"
        refuse_other(folder, {"model": 0}, {"model": 1}, **words)
    return ""


def differing(then: dict[str, str], now: dict[str, str], skipped: Collection[str] = ()) -> str:
    """The first names under which two sets of hashes differ, as a sentence shows them; empty where none does."""
    names = sorted(name for name in (then.keys() | now.keys()) - set(skipped) if then.get(name) != now.get(name))
    # A stranger's file may hold any name.
    short = [shown(name.rpartition("<locals>.")[2])[1:-1] for name in names]
    return ", ".join(short[:3]) + " and more" * (len(short) > 3)


def _apart(then: dict[str, Tensor], now: dict[str, Tensor], tolerance: dict[str, float]) -> str:
    """How far two models' logits lie apart, where that is further than rounding goes."""
    for name, logits in now.items():
        # Of as many as both have: how many there are hangs on the size of a pass.
        was = then.get(name)
        if was is None or was.shape[1] != logits.shape[1]:
            return "another number"
        many = min(len(was), len(logits))
        was, logits = was[:many], logits[:many]
        distance = (was.double() - logits.double()).abs().nan_to_num(0.0)
        largest = logits.double().abs().nan_to_num(0.0).amax(1, keepdim=True)
        allowed = tolerance[name] * torch.maximum(largest, largest.mean())
        if (distance > allowed).any() or not torch.equal(was.isfinite(), logits.isfinite()):
            return f"up to {float(distance.max()):.2g} apart"
    return ""


def refuse_other(
    folder: Path,
    found: Any,
    given: Identity,
    *,
    of: str = "an evaluation",
    remedy: Sequence[Part] = ("give another folder, or delete it",),
    **called: str,
) -> None:
    """Refuse a folder that belongs to another identity.

    Args:
        folder: what is refused.
        found: the identity that was read there, or anything else that a file may hold.
        given: the identity at hand.
        of: what the folder holds.
        remedy: what to do.
        called: other words for what may differ than the usual ones.

    Raises:
        ValueError: EV271, with the first thing that differs, in figures where they are short.
    """
    for name, value in given.items():
        was = found.get(name) if isinstance(found, dict) else None
        if was != value:
            figures = f" ({was}, given {value})" if name in _SHOWN else ""
            if name in ("model", "data") and isinstance(was, str) and was:
                figures = f" ({was[:8]}..., given {value[:8]}...)"
            said = f"EV271 {folder} holds {of} of {(_DIFFERS | called)[name]}{figures}; "
            raise UsageError(said, *remedy)


def begun(folder: Path, identity: Identity, look: Callable[[], Answers]) -> Identity:
    """The whole identity of a result that is begun, whose clean logits are kept."""
    answers = look()
    answers.write(folder)
    return identity_of(**identity | answers.parts)


def claim(folder: Path, path: Path, identity: Identity, **words: Any) -> None:
    """Write the identity where there is none yet, or refuse the folder of another; see `refuse_other` for the words."""
    if path.is_file():
        refuse_other(folder, files.read_json(path), identity, **words)
    else:
        files.write_json(path, identity)
