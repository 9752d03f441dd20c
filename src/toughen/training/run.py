"""A run: set-up, loop, finish. The same call in the same folder goes on where it stopped.

Example:
    summary = train(load("mnist-free"), Path("runs/free"))
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from toughen import devices, recipes
from toughen.data import Batch, Batches
from toughen.data.base import Examples, fingerprint
from toughen.data.dataset_card import DatasetCard
from toughen.devices import own_draws
from toughen.errors import Option
from toughen.models.cost import counted
from toughen.models.identity import differing
from toughen.models.refusals import naming_theirs
from toughen.optim import ema
from toughen.parallel import ranks as distributed
from toughen.progress import Display, selection_text
from toughen.recipes import Recipe, RecipeError
from toughen.storage import files as store
from toughen.storage.checkpoint import latest_checkpoint, load_checkpoint
from toughen.training.acceleration import Acceleration, autotuned, kernels, workspace
from toughen.training.catastrophic_overfitting import OverfittingMonitor
from toughen.training.checkpointer import Checkpointer
from toughen.training.early_stopping import Accuracies, improved, validate
from toughen.training.initial_weights import as_weights_show
from toughen.training.loop import Job, train_batch
from toughen.training.memory import enough_memory
from toughen.training.micro_batches import batchnorm_of_ranks, has_batchnorm
from toughen.training.rehearsal import ready
from toughen.training.setup import (
    WAY_OUT,
    check_balls,
    check_images,
    chosen_device,
    load_data,
    load_pseudo_labelled,
    refusal,
    set_up,
    splits,
)
from toughen.training.signals import Stopped, StopSignal, called, listening
from toughen.training.state import code_of, restore
from toughen.training.state_schema import SavedState, fitting


def train(recipe: Recipe, out: Path, *, display: Display | None = None) -> dict[str, Any]:
    """Train as the recipe says, into the folder `out`.

    Args:
        recipe: everything about the run.
        out: a new folder, or one in which a run of the same recipe was begun: it goes on to the same bits as if it
            had never stopped (on a CPU with the same number of threads).
        display: where progress is shown; nowhere by default.

    Returns:
        The summary that is also in `summary.json`.

    Raises:
        RecipeError: the folder holds another recipe, or the data do not fit the recipe.
        ValueError: the data cannot be loaded.
        store.Locked: another process trains in that folder.
        store.Damaged: there are checkpoints, but none of them is whole.
        NonFinite: a loss or gradient became NaN or infinite.
        OSError: the folder cannot be written, or three checkpoints in a row could not.
        Stopped: a signal asked for it (SIGTERM, SIGINT, SIGUSR1); the batch is finished and a checkpoint written.
        distributed.Lost: another rank has died.
    """
    device = distributed.local_device(chosen_device(recipe.device))
    with (
        workspace(recipe),
        listening() as stop,
        distributed.group(device),
        own_draws(device),
        enough_memory(recipe, out, device),
        contextlib.ExitStack() as held,
    ):
        display = display if display and distributed.is_main() else Display()
        if distributed.is_main():
            recipe = as_weights_show(recipe, out, display.note)
            check_folder(recipe, out)
        recipe = recipe.model_copy(update={"model": distributed.from_main(recipe.model)})
        data = load_data(recipe)
        train_split, validation, index = splits(recipe, data)
        for said in (*data.notes, *check_balls(recipe, data.image_shape)):
            display.note(said)
        if data.test_part == "train":
            display.note(
                f"{data.name} has no test part; {len(data.test):,} images, a fifth of each class, are set aside"
            )
        extra = load_pseudo_labelled(recipe, data)
        fresh, ways = distributed.from_main(resume_state(out) if distributed.is_main() else None)
        read = {"train": train_split, "validation": validation, "test": data.test}
        check_images({**read, "extra": extra.examples} if extra else read, display.note, fresh=fresh)
        job, batches = set_up(
            recipe, data, train_split, index, device, extra=extra, note=display.note, fresh=fresh, ways=ways
        )
        if distributed.is_main():
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(store.lock(out))
            claim(recipe, out, display.note)
        watch = OverfittingMonitor.over(recipe, job.method, train_split, device)
        about = DatasetCard.of(data, trained=len(train_split), validated=len(validation))
        others = fingerprint({"extra": extra.examples}) if extra else None
        outputs = held.enter_context(resume(recipe, job, watch, about, others, out, display))
        held.callback(batches.close)
        if job.number == recipe.batches and not outputs.unvalidated:
            display.note(f"{out} is complete")
            return finish(recipe, job, outputs, device)
        held.enter_context(kernels(recipe, job.ways))
        with autotuned(recipe), naming_theirs():
            ready(recipe, job, batches, display.note)
        display.start(title(recipe, len(train_split), len(validation), device), job.step, job.total_steps)
        if said := batchnorm_of_ranks(recipe, job.model):
            display.note(said)
        if (rows := job.micro_batch) and rows < distributed.slots(recipe.batch_size) and has_batchnorm(job.model):
            display.note(f"BatchNorm by parts: every {rows} images are normalised by themselves (micro_batch)")
        with display, naming_theirs():
            stop.gentle = True
            fit(recipe, job, batches, outputs, validation, display, stop)
        return finish(recipe, job, outputs, device)


def title(recipe: Recipe, training: int, validating: int, device: torch.device) -> str:
    """One line about a run."""
    rounded = f" (rounded up from {recipe.steps} to whole batches)" if recipe.steps != recipe.total_steps else ""
    ranks = f", {distributed.world()} ranks" if distributed.world() > 1 else ""
    chosen = f"{validating} held out, the best by {selection_text(recipe.selected_by)}"
    return (
        f"{recipe.name}: {recipe.method.name} on {training} images of {recipe.data.source} ({chosen}), "
        f"{recipe.threat}, {recipe.total_steps} steps{rounded}, {device}{ranks}"
    )


def check_folder(recipe: Recipe, out: Path) -> None:
    """Refuse a folder that is not this recipe's, before anything is computed.

    One of another recipe passes as long as nothing was made of it: `claim` makes the folder this recipe's.

    Raises:
        RecipeError: when the folder holds another recipe's work, or other files and no recipe.
    """
    path = out / "recipe.yaml"
    if path.exists():
        if (different := recipes.differences(recipes.load(str(path)), recipe)) and not is_unused(out):
            raise RecipeError(
                f"{out} holds a run of another recipe ({'; '.join(different[:3])}{'; ...' if different[3:] else ''}); "
                "give another ",
                Option("out"),
            )
    elif out.exists() and (
        not out.is_dir() or any(not file.name.startswith((".lock", ".tmp-")) for file in out.iterdir())
    ):
        raise RecipeError(f"{out} exists and is no run folder; give another ", Option("out"))


def is_unused(out: Path) -> bool:
    """Whether a run folder holds what a run leaves that fails at its first batch: a recipe and empty logs."""
    files = [file for file in out.rglob("*") if not file.is_dir() and not file.name.startswith(".")]
    recipe, logs = out / "recipe.yaml", (out / "metrics.jsonl", out / "timing.jsonl")
    if any(file != recipe and (file not in logs or file.stat().st_size) for file in files):
        return False
    # Byte by byte what `claim` writes: a recipe that the user wrote, with remarks, is work.
    return recipe.read_text() == recipes.dump(recipes.load(str(recipe)))


def resume_state(out: Path) -> tuple[bool, Acceleration | None]:
    """Whether there is no checkpoint yet that a run in the folder goes on from, and in which ways it computes."""
    found = latest_checkpoint(out, warn=lambda text: None, clean=False)
    return found is None, SavedState.of(found).ways if found else None


def claim(recipe: Recipe, out: Path, note: Callable[[str], None] = lambda text: None) -> None:
    """Make the folder this recipe's; under its lock, for another process may have claimed it meanwhile."""
    check_folder(recipe, out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.yaml"
    if path.exists() and recipes.differences(recipes.load(str(path)), recipe):
        note(f"{out} held another recipe, of which nothing was trained yet; this one replaces it")
        store.write_text(path, recipes.dump(recipe))
    elif not path.exists():
        store.write_text(path, recipes.dump(recipe))


def resume(
    recipe: Recipe,
    job: Job,
    watch: OverfittingMonitor,
    about: DatasetCard,
    extra: str | None,
    out: Path,
    display: Display,
) -> Checkpointer:
    """Open the run's logs, and put job and watch at the newest whole checkpoint if there is one.

    Args:
        recipe: of the run.
        job: in its first state.
        watch: likewise.
        about: the data as they are now.
        extra: fingerprint of the extra set, where there is one.
        out: the run folder.
        display: is told what has changed without harm.

    Raises:
        RecipeError: training was begun on other images.
        Damaged: a checkpoint is whole, but not of such a run.
    """
    newest = latest_checkpoint(out, warn=display.note) if distributed.is_main() else None
    path = distributed.from_main(newest.path if newest else None)
    checkpoint = newest or (load_checkpoint(path) if path else None)
    saved = SavedState.of(checkpoint) if checkpoint else None
    if checkpoint and saved:
        saved.check_place(checkpoint, batches=recipe.batches, steps_per_batch=job.method.steps_per_batch)
        name, now, about = about.name, about.fingerprints, DatasetCard.read(saved.data)
        changed = about.changed(now)
        if seen := [name for name in changed if name != "test"]:
            which = f"the {' and '.join(seen)} images have changed"
            raise RecipeError(f"CK302 {out} was trained on other images than its data holds now ({which}); ", *WAY_OUT)
        if changed:
            display.note(f"the test images of {name} have changed; training goes on, for it never looks at them")
        if saved.extra != extra:
            raise RecipeError(f"CK302 {out} was trained on other images than its extra holds now; ", *WAY_OUT)
        if (threads := torch.get_num_threads()) != saved.threads:
            display.note(f"RN502 Resumed with {threads} threads (was {saved.threads}): close, but not bit-equal.")
        if saved.code is not None and (names := differing(saved.code, code_of(job))):
            display.note(
                f"{out} was begun with other code of {names}; to train with what it is now, give another folder"
            )
        with fitting(checkpoint):
            restore(job, checkpoint)
        watch.memory = saved.overfitting
    logs = None
    if distributed.is_main():
        lengths = (saved.metrics, saved.timing) if saved else (0, 0)
        metrics, timing = (out / f"{name}.jsonl" for name in ("metrics", "timing"))
        with contextlib.ExitStack() as opened:
            first = opened.enter_context(store.Log.resume(metrics, lengths[0]))
            logs = first, store.Log.resume(timing, lengths[1])
            opened.pop_all()
    outputs = Checkpointer(out, logs, about, extra, watch, recipe.selected_by, display.note)
    if checkpoint and saved:
        outputs.best, outputs.seconds = checkpoint.state["best"], saved.seconds
        outputs.newest, outputs.unvalidated = checkpoint.path, saved.unvalidated
        outputs.selected_by = saved.selected_by
        if saved.selected_by != recipe.selected_by:
            display.note(f"as it was begun, the best is chosen by {selection_text(saved.selected_by)}")
    return outputs


def is_due(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` steps lies in (before, after]."""
    return after // every > before // every


def load_batch(batches: Batches, number: int) -> Batch:
    """A batch, or in one sentence what has become of an image that was whole before training began."""
    try:
        return batches[number]
    except ValueError as error:
        raise refusal(error, fresh=False) from None


def fit(
    recipe: Recipe,
    job: Job,
    batches: Batches,
    outputs: Checkpointer,
    validation: Examples,
    display: Display,
    stop: StopSignal,
) -> None:
    """Train to the end of the budget; watch, log, validate, save and stop between batches."""
    validate_every = recipe.selection.every or max(1, job.total_steps // 10)
    check_every = outputs.watch.every
    images, outputs.clock = 0, time.monotonic()
    if outputs.unvalidated:
        validate_and_save(recipe, job, outputs, validation, display, stop)
    while job.number < recipe.batches:
        before, batch = job.step, load_batch(batches, job.number)
        with autotuned(recipe), counted(job.model, job.passes):
            train_batch(job, batch)
        images += batch.size * job.method.steps_per_batch
        last = job.number == recipe.batches
        if check_every and (last or is_due(check_every, before, job.step)):
            job.finite.check()
            check_overfitting(job, outputs, display)
        outputs.unvalidated = last or is_due(validate_every, before, job.step)
        saving = outputs.unvalidated or is_due(recipe.save_every, before, job.step)
        logging = saving or is_due(recipe.log_every, before, job.step)
        asked = stop.asked()
        if logging or asked:
            job.finite.check()
        if logging:
            record = {"step": job.step, "lr": job.optimizer.param_groups[0]["lr"], **job.meters.read()}
            record |= job.method.metrics(job.state)
            pace = images / max(outputs.tick(), 1e-9)
            outputs.write(record, {"step": job.step, "seconds": outputs.seconds, "images_per_second": pace})
            display.progress(record, pace)
            images = 0
        if saving or asked:
            validate_and_save(recipe, job, outputs, validation, display, stop)
    outputs.settle()


def validate_and_save(
    recipe: Recipe, job: Job, outputs: Checkpointer, validation: Examples, display: Display, stop: StopSignal
) -> None:
    """Validate where that is due and no signal comes first, save, and stop where one came.

    Raises:
        Stopped: after the checkpoint.
    """
    winners: list[str] = []
    if outputs.unvalidated:
        given = {"threat": recipe.threat, "suite": recipe.selection.suite, "seed": recipe.seed}
        found = validate(job, validation, **given, stop=stop)
        if found:
            display.validated(job.step, found)
            winners = note_validation(job.step, outputs, found)
            outputs.unvalidated = False
    outputs.tick()
    outputs.save(job, winners=winners, slots=recipe.batch_size)
    ended = job.number == recipe.batches and not outputs.unvalidated
    # One that comes so late that nothing is left to do stops nothing.
    if not ended and (signal := stop.asked()):
        outputs.settle()
        raise Stopped(f"RN511 {called(signal)}: saved step {job.step} in {outputs.folder}. The same command goes on.")


def check_overfitting(job: Job, outputs: Checkpointer, display: Display) -> None:
    """Log what a check for catastrophic overfitting found, and tell the user of an alarm; training goes on."""
    found = outputs.watch.check(job, outputs.best)
    outputs.write({"step": job.step, "overfitting": found})
    if "alarm" in found:
        display.note(found["alarm"])


def note_validation(step: int, outputs: Checkpointer, found: Accuracies) -> list[str]:
    """Log what a validation found; the candidates that it makes the best so far."""
    winners = improved(found, outputs.best, outputs.selected_by)
    for name in winners:
        outputs.best[name] = {"step": step, **found[name]}
    outputs.write({"step": step, "validation": found, "selected_by": outputs.selected_by})
    return winners


def finish(recipe: Recipe, job: Job, outputs: Checkpointer, device: torch.device) -> dict[str, Any]:
    """The summary: what was trained, what it cost, and the best by validation."""
    headline = recipe.headline
    summary = {
        "name": recipe.name,
        "method": recipe.method.name,
        "threat": str(recipe.threat),
        "steps": job.step,
        "batches": job.number,
        "forwards": job.passes.forwards,
        "backwards": job.passes.backwards,
        "natural_steps": job.passes.natural_steps,
        "predicted_natural_steps": recipe.natural_steps,
        "seconds": outputs.seconds,
        "peak_memory_bytes": peak_memory(device),
        "headline": headline,
        "selected_by": outputs.selected_by,
        "best": outputs.best,
        "alarms": outputs.watch.memory.alarms if outputs.watch.every else None,
        "ways": asdict(job.ways),
        "micro_batch": job.micro_batch,
        "averages_batchnorm": ema.BUFFERS if recipe.averages else None,
        "device": str(device),
        "ranks": distributed.world(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if distributed.is_main():
        store.write_json(outputs.folder / "summary.json", summary)
    distributed.barrier()
    return summary


def peak_memory(device: torch.device) -> int:
    """Bytes at the fullest moment: of the GPU where there is one, else of the process."""
    if device.type != "cpu":
        return devices.peak_memory(device)
    # Not on Windows, where training is untested anyway.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
