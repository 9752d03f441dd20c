"""The units of an evaluation that are done, in its folder: what makes it resumable.

    with Ledger.open(folder, identity) as ledger:
        unit = ledger.get("001-00000") or ...
        ledger.put("001-00000", unit, seconds=2.0)

A folder belongs to one evaluation: the model's weights, the images and labels, the threat model, the attacks with all
their settings, the seed and the size of a unit. Another one is refused by name of what differs, never mixed in.

    units/identity.json             whose units these are
    units/001-00000.parquet         outcomes of a finished unit, written last and at once
    units/001-00000.json            what it took
    adversarial/001-00000.safetensors   its adversarial examples, where they are kept
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from toughen import store
from toughen.evaluation.units import Unit, to_uint8
from toughen.outcomes import Outcomes

Identity = dict[str, Any]
Keep = Literal["float32", "uint8"]

_CALLED = {
    "model": "another model (or other weights of it)",
    "data": "other images, labels or ids",
    "threat": "another threat model",
    "settings": "other attacks or settings",
    "seed": "another seed",
    "order": "another order of the attacks (cascade or independent)",
    "chunk_size": "another chunk_size",
    "dtype": "another precision",
    "keep": "another choice of what to keep",
    "version": "another version of toughen",
}


def hash_model(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, and the modules' types."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__qualname__}:{module.extra_repr()};".encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(name.encode())
        digest.update(hash_tensor(tensor).encode())
    return digest.hexdigest()


def hash_tensor(*tensors: Tensor) -> str:
    """SHA-256 over types, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def refuse_other(folder: Path, found: Identity, given: Identity) -> None:
    """Refuse a folder that belongs to another evaluation.

    Raises:
        ValueError: EV271, with what differs and its first figures.
    """
    for name, value in given.items():
        was = found.get(name)
        if was != value:
            figures = f" ({was[:8]}..., given {value[:8]}...)" if name in ("model", "data") and was else ""
            if name in ("threat", "seed", "chunk_size", "dtype", "version", "order"):
                figures = f" ({was}, given {value})"
            raise ValueError(
                f"EV271 {folder} holds an evaluation of {_CALLED[name]}{figures}; give another folder, or delete it"
            )


@dataclass(frozen=True)
class Ledger:
    """Finished units.

    Args:
        folder: of the evaluation; None keeps nothing.
        keep: in which form adversarial examples are kept, if they are.
    """

    folder: Path | None
    keep: Keep | None = None

    @classmethod
    @contextmanager
    def open(cls, folder: Path | None, identity: Identity, *, keep: Keep | None, main: bool) -> "Iterator[Ledger]":
        """The ledger of a folder, locked by the main rank.

        Raises:
            ValueError: EV271, the folder belongs to another evaluation.
            Locked: another process writes it.
        """
        if folder is None:
            yield cls(None)
            return
        if not main:
            yield cls(folder, keep)
            return
        with store.lock(folder):
            units = folder / "units"
            units.mkdir(exist_ok=True)
            for stray in [*units.glob(".tmp-*"), *(folder / "adversarial").glob(".tmp-*")]:
                store.delete(stray)
            if (units / "identity.json").exists():
                refuse_other(folder, store.read_json(units / "identity.json"), identity)
            else:
                store.write_json(units / "identity.json", identity)
            yield cls(folder, keep)

    def get(self, key: str) -> tuple[Outcomes, dict[str, Any]] | None:
        """A finished unit and what it took; None where it is not done, or its file cannot be read."""
        if self.folder is None:
            return None
        # A file that rotted is worth its unit's work, no more.
        with suppress(OSError, ValueError, KeyError):
            path = self.folder / "units" / f"{key}.parquet"
            return Outcomes.read(path), store.read_json(path.with_suffix(".json"))
        return None

    def put(self, key: str, unit: Unit, took: dict[str, Any]) -> None:
        """Keep a unit."""
        if self.folder is None:
            return
        if self.keep is not None and (~unit.outcomes.survived).any():
            self._keep_images(key, unit, self.keep)
        path = self.folder / "units" / f"{key}.parquet"
        store.write_json(path.with_suffix(".json"), took)
        store.replace_by(path, unit.outcomes.write)

    def _keep_images(self, key: str, unit: Unit, keep: Keep) -> None:
        assert self.folder is not None
        broken = torch.from_numpy(~unit.outcomes.survived)
        tensors = {"index": torch.from_numpy(unit.outcomes.index.copy())[broken]}
        images = unit.images[broken.to(unit.images.device)].cpu()
        tensors["images"] = to_uint8(images) if keep == "uint8" else images.float()
        if unit.fools_as_uint8 is not None:
            tensors["fools"] = unit.fools_as_uint8[broken]
        folder = self.folder / "adversarial"
        folder.mkdir(exist_ok=True)
        label = json.dumps({"attack": unit.outcomes.attack[0].item()})
        store.replace_by(
            folder / f"{key}.safetensors", lambda path: save_file(tensors, path, metadata={"toughen": label})
        )

    def finish(self) -> None:
        """The result is written: the units are no longer needed."""
        if self.folder is not None:
            store.delete(self.folder / "units")
