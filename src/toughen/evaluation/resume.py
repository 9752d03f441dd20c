"""The units of an evaluation that are done, in its folder: what makes it resumable.

    with FinishedUnits.open(folder, identity, keep="uint8") as finished:
        found = finished.get("001-00000")                 # outcomes and what they took, or None
        finished.put("001-00000", unit, {"seconds": 2.0, "idle": 0, "notes": []})
    adversarial_examples(folder)["pgd-20"].images

A folder belongs to one evaluation: the model's weights, code and answers, the images and labels, the threat model, the
attacks with all their settings and code, the seed and the size of a unit. Another one is refused by name of what
differs, never mixed in; one that cannot be told is given another name (`identity.recognise`).

    clean_logits.safetensors        what the model answered to the first clean images
    units/identity.json             whose units these are
    units/001-00000.parquet         outcomes of a finished unit
    units/001-00000.json            what it took and a seal over its files, written last: the unit is done
    adversarial/001-00000.safetensors   its adversarial examples, where they are kept: the only files that stay
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from toughen.evaluation.result import RESULT
from toughen.evaluation.work_unit import UnitResult
from toughen.models.identity import CLEAN_LOGITS, Answers, Identity, begun, claim, recognise
from toughen.models.inputs import to_uint8
from toughen.outcomes import Outcomes
from toughen.parallel import ranks
from toughen.settings import known
from toughen.storage import files as store

Keep = Literal["float32", "uint8"]
T = TypeVar("T")

UNITS = "units"
IDENTITY = "identity.json"
ADVERSARIAL = "adversarial"


def check_folder(folder: Path, *, shared: bool = False) -> None:
    """Refuse a folder that holds anything but an evaluation, before anything is computed or written.

    Args:
        folder: of the evaluation; it need not exist.
        shared: every rank of the process group calls this; what the first one sees holds for all.

    Raises:
        ValueError: EV271, with the name of a file that is not an evaluation's.
    """
    _by_main(lambda: _refuse_foreign(folder), shared=shared)


def _by_main(work: Callable[[], T], *, shared: bool) -> T:
    """What work comes to, done once: by the first rank where they share it, whose refusal is everybody's."""
    found: Any = None
    refusal: Exception | None = None
    if not shared or ranks.is_main():
        try:
            found = work()
        except (ValueError, OSError, store.Locked) as error:
            refusal = error
    found, refusal = ranks.from_main((found, refusal)) if shared else (found, refusal)
    if refusal is not None:
        raise refusal
    return found


def _refuse_foreign(folder: Path) -> None:
    if (result := folder / RESULT).is_file():
        stored = store.read_json(result)
        if not isinstance(stored, dict) or "identity" not in stored:
            raise ValueError(f"EV271 {result} is of something else than an evaluation; give a new or empty folder")
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"EV271 {folder} is a file; give a new or empty folder")
    elif folder.is_dir() and not (folder / UNITS / IDENTITY).is_file():
        # Locks and what a kill left of a file begin with a dot; one that fell early leaves an empty folder of units.
        others = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != CLEAN_LOGITS]
        if alien := [path for path in others if path.name != UNITS or not path.is_dir() or _holds_files(path)]:
            raise ValueError(
                f"EV271 {folder} holds other files ({min(alien).name}) and no evaluation; give a new or empty folder"
            )


def _holds_files(folder: Path) -> bool:
    return any(not path.name.startswith(".") for path in folder.iterdir())


@dataclass(frozen=True)
class Claimed:
    """Whose the work in a folder is to be.

    Attributes:
        identity: of the evaluation; as it was found in the folder, if it is gone on with.
        look: gives what else belongs to the identity of one that is begun; None for one that is gone on with.
        said: what a reader should know: where an earlier result was put.
    """

    identity: Identity
    look: Callable[[], Answers] | None
    said: tuple[str, ...] = ()


def recognised(
    folder: Path | None, identity: Identity, look: Callable[[], Answers], *, shared: bool = False
) -> Claimed:
    """Whether a folder's evaluation is this one (see `identity.recognise`); what the first rank finds holds for all.

    Raises:
        ValueError: EV271, it is another one.
    """
    if folder is None:
        return Claimed(identity, None)

    path = folder / RESULT if (folder / RESULT).is_file() else folder / UNITS / IDENTITY
    found, said = _by_main(lambda: recognise(folder, path, identity, look), shared=shared)
    return Claimed(found or identity, None if found else look, (said,) if said else ())


@dataclass(frozen=True)
class FinishedUnits:
    """The units of an evaluation that are done.

    Args:
        folder: of the evaluation; None keeps nothing.
        identity: of the evaluation, whole.
        keep: in which form adversarial examples are kept, if they are.
    """

    folder: Path | None
    identity: Identity
    keep: Keep | None = None

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path | None, claimed: Claimed, *, keep: Keep | None, shared: bool = False
    ) -> "Iterator[FinishedUnits]":
        """Those of a folder, locked for writing.

        Args:
            folder: see the class.
            claimed: whose they are, see `recognised`.
            keep: see the class.
            shared: every rank of the process group opens it; the first locks it, and one refusal is everybody's.

        Raises:
            ValueError: EV271, the folder belongs to another evaluation; or `keep` is none of its choices.
            Locked: another process writes it.
        """
        if keep is not None:
            known(keep, get_args(Keep), "form of adversarial examples")
        if folder is None:
            yield cls(None, claimed.identity)
            return
        with ExitStack() as stack:

            def prepare() -> Identity:
                stack.enter_context(store.lock(folder))
                return _prepare(folder, claimed)

            # Nobody writes before the first rank has made room, and nobody waits for one that was refused.
            identity = _by_main(prepare, shared=shared)
            yield cls(folder, identity, keep)

    def get(self, key: str) -> tuple[Outcomes, dict[str, Any]] | None:
        """A finished unit and what it took; None where it is not done, or a file of it is not what was written."""
        if self.folder is None:
            return None
        path = self.folder / UNITS / f"{key}.parquet"
        # A file that rotted is worth its unit's work, no more.
        with suppress(OSError, ValueError, LookupError, TypeError):
            stored = store.read_json(path.with_suffix(".json"))
            if stored["seal"] == _seal(self.folder, stored["took"], stored["files"]):
                return Outcomes.read(path), stored["took"]
        return None

    def put(self, key: str, unit: UnitResult, took: dict[str, Any]) -> None:
        """Keep a unit."""
        if self.folder is None:
            return
        path = self.folder / UNITS / f"{key}.parquet"
        store.replace_by(path, unit.outcomes.write)
        files = [f"{UNITS}/{path.name}"]
        if self.keep is not None and unit.images is not None and (~unit.outcomes.survived).any():
            files.append(f"{ADVERSARIAL}/{key}.safetensors")
            _write_images(self.folder / files[-1], unit, unit.images, self.keep)
        store.write_json(
            path.with_suffix(".json"), {"took": took, "files": files, "seal": _seal(self.folder, took, files)}
        )

    def finish(self) -> None:
        """The result is written: the units are no longer needed."""
        if self.folder is not None:
            store.delete(self.folder / UNITS)


def is_finished(folder: Path, *, shared: bool = False) -> bool:
    """Whether a folder holds the whole result of its evaluation; what the first rank sees where they share the work."""
    done = (folder / RESULT).exists()
    if not (ranks.from_main(done) if shared else done):
        return False
    # Left where a kill fell between the result and the end.
    store.delete(folder / UNITS)
    return True


def _prepare(folder: Path, claimed: Claimed) -> Identity:
    """Claim a folder for an evaluation, or find it claimed for the same one, and sweep what a kill left."""
    units = folder / UNITS
    units.mkdir(exist_ok=True)
    for stray in [path for place in (folder, units, folder / ADVERSARIAL) for path in place.glob(".tmp-*")]:
        store.delete(stray)
    identity = claimed.identity if claimed.look is None else begun(folder, claimed.identity, claimed.look)
    claim(folder, units / IDENTITY, identity)
    return identity


def _seal(folder: Path, took: dict[str, Any], files: Sequence[str]) -> str:
    """SHA-256 over what a unit took and the bytes of its files."""
    digest = hashlib.sha256(store.encode(took))
    for name in files:
        with open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write_images(path: Path, unit: UnitResult, images: Tensor, keep: Keep) -> None:
    path.parent.mkdir(exist_ok=True)
    broken = torch.from_numpy(~unit.outcomes.survived)
    images = images[broken.to(images.device)].cpu()
    tensors = {
        "index": torch.from_numpy(unit.outcomes.index.copy())[broken],
        "images": to_uint8(images) if keep == "uint8" else images.float(),
    }
    if unit.fools_as_uint8 is not None:
        tensors["fools"] = unit.fools_as_uint8[broken]
    label = json.dumps({"attack": unit.outcomes.attack[0].item()})
    # Not by `save_file`, which writes under a temporary name of its own: a kill would leave that for ever.
    data = save(tensors, metadata={"toughen": label})
    store.replace_by(path, lambda temporary: temporary.write_bytes(data))


@dataclass(frozen=True, eq=False)
class Adversarial:
    """The examples that one attack broke.

    Args:
        index: example ids (M,).
        images: (M, C, H, W), float32 in [0, 1] or uint8.
        fools: whether the uint8 image, divided by 255, lies in the ball and is misclassified, (M,); None for floats,
            which all are.
    """

    index: Tensor
    images: Tensor
    fools: Tensor | None


def adversarial_examples(folder: Path) -> dict[str, Adversarial]:
    """What `evaluate(..., folder=folder, keep=...)` kept there, by the attack's label, in the order of the attacks.

    Raises:
        Damaged: a file is not what was written.
    """
    parts: dict[str, list[dict[str, Tensor]]] = {}
    for path in sorted((folder / ADVERSARIAL).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                label = json.loads(file.metadata()["toughen"])["attack"]
                names = list(file.keys())
                parts.setdefault(label, []).append({name: file.get_tensor(name) for name in names})
        except (SafetensorError, LookupError, TypeError, ValueError) as error:
            raise store.Damaged(path, f"{path.name}: {error}") from error
    joined = {
        label: {name: torch.cat([part[name] for part in some]) for name in some[0]} for label, some in parts.items()
    }
    return {label: Adversarial(part["index"], part["images"], part.get("fools")) for label, part in joined.items()}
