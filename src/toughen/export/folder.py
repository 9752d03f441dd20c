"""The export itself: weights, description, recipe and card of a run in one folder, whole or not at all.

made = export(Path("runs/free"), Path("exports/free"), formats=("onnx", "robustbench"), licence="apache-2.0")
made.files                                      # {"README.md": 4711, "model.safetensors": 44731212, ...}
toughen.load_model("exports/free")
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from toughen.errors import Command
from toughen.export import leaderboard, to_onnx
from toughen.export.card import card
from toughen.export.facts import RunFacts, collect_facts, same_tensors
from toughen.export.staging import hashes, refuse_foreign, staged
from toughen.models.exported import CONFIG, WEIGHTS, load_model, to_bytes
from toughen.noise import generator
from toughen.settings import known
from toughen.storage import files as store

FORMATS = ("safetensors", "onnx", "robustbench")

README, RECIPE, ONNX, ENTRY = "README.md", "recipe.yaml", "model.onnx", "robustbench.json"

TRIED = 8


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        folder: where.
        files: bytes by name.
        notes: sentences that a reader should know.
        data: what the run was trained on, as its recipe names it.
    """

    folder: Path
    files: dict[str, int]
    notes: tuple[str, ...]
    data: str


def export(
    run_folder: Path,
    out: Path,
    *,
    checkpoint: str = "best",
    weights: str | None = None,
    formats: Sequence[str] = ("safetensors",),
    licence: str | None = None,
) -> Export:
    """Write a run's weights as a folder that `toughen.load_model` reads, with a model card.

    The data of the run are not looked at: what the card says of them is in the run folder.

    The folder holds model.safetensors, config.json, recipe.yaml and README.md, and what `formats` asks for. It appears
    when all of it has been written and the weights, read back, have given equal bits. An earlier export there is
    replaced, unless something in it was changed.

    Args:
        run_folder: of a `toughen train`.
        out: the folder to write.
        checkpoint: "best" by validation (`Recipe.selected_by`), or "last".
        weights: "weights" or an average like "average-0.995"; the recipe's headline by default.
        formats: of `FORMATS`: "safetensors" is always there; "onnx" adds model.onnx, checked by running it;
            "robustbench" adds robustbench.json (see `leaderboard.entry`).
        licence: identifier for the card, like apache-2.0; "not stated" without.

    Raises:
        ValueError: the run cannot be opened (see `open_trained`); `out` holds other things; a format is
            unknown, lacks its packages or figures, or gives other logits; nothing has been written then.
        Damaged: a checkpoint of the run is not whole.
        Locked: another process exports to the same place.
        OSError: the folder cannot be written; what was there before is as it was.
    """
    for name in formats:
        known(name, FORMATS, "export format")
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}", licence):
        raise ValueError(f"{licence!r} is no identifier of a licence; write one like apache-2.0, mit or cc-by-4.0")
    if "onnx" in formats:
        to_onnx.require()
    refuse_foreign(out)
    facts = collect_facts(run_folder, checkpoint=checkpoint, weights=weights)
    entry = leaderboard.entry(facts) if "robustbench" in formats else None
    difference = None
    with staged(out) as folder:
        (folder / WEIGHTS).write_bytes(to_bytes(facts.run.model, facts.config))
        (folder / RECIPE).write_text(facts.recipe, encoding="utf-8")
        if entry is not None:
            store.write_json(folder / ENTRY, entry)
        if "onnx" in formats:
            difference = to_onnx.write_onnx(facts.run.model, folder / ONNX, _images(facts))
        (folder / README).write_text(card(facts, licence=licence, onnx=difference), encoding="utf-8")
        store.write_json(folder / CONFIG, {**facts.config, "files": hashes(folder)})
        _read_back(folder, facts)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Export(out, files, tuple(_notes(facts, difference)), facts.run.recipe.data.source)


def _images(facts: RunFacts) -> torch.Tensor:
    """Eight images of noise, because the data may be gone: (8, C, H, W) float32 in [0, 1]."""
    return torch.rand(TRIED, *facts.run.about.image_shape, generator=generator("export"))


def _read_back(folder: Path, facts: RunFacts) -> None:
    """What was written gives the very bits of what was exported."""
    again, images = load_model(folder), _images(facts)
    same = same_tensors(facts.run.model.state_dict(), again.state_dict())
    with torch.no_grad():
        if not (same and torch.equal(facts.run.model(images), again(images))):
            raise store.Damaged(folder / WEIGHTS, f"{WEIGHTS} gives other logits than the run's model")


def _notes(facts: RunFacts, difference: float | None) -> list[str]:
    notes = list(facts.notes)
    if difference is not None:
        notes.append(f"{ONNX} gives the model's logits on {TRIED} images of noise to within {difference:.1e}")
    if not facts.evaluations:
        measuring = Command("evaluate", facts.run.folder, suite="autoattack")
        notes.append(f"the card says: not evaluated; {measuring} measures it")
    if unreliable := [found.suite for found in facts.evaluations if found.unreliable]:
        notes.append(f"the card says: UNRELIABLE ({', '.join(dict.fromkeys(unreliable))})")
    return notes
