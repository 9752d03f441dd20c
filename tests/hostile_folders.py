"""Hostile run folders, and what a report reads of them. Importing it enters them into `CASES`."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile import MARKUP, Commands, Place, bomb, case, of_run, reported
from toughen.storage.checkpoint import _manifest

DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000
RESUMED = ["train", "small.yaml", "--out", "run"]


# --- runs


def signed(checkpoint: Path) -> Path:
    """Give a spoilt checkpoint a manifest that fits it, as a stranger can."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(checkpoint.iterdir())
        if path.name != "MANIFEST.json"
    }
    (checkpoint / "MANIFEST.json").write_bytes(_manifest(int(checkpoint.name[-9:]), files))
    return checkpoint


def state(place: Place, change: Callable[[dict[str, Any]], object]) -> Commands:
    """A run whose newest state is changed, and signed anew."""
    place.run()
    path = place.checkpoint() / "state.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    signed(path.parent)
    return of_run()


def state_text(place: Place, text: str) -> Commands:
    place.run()
    (place.checkpoint() / "state.json").write_text(text)
    signed(place.checkpoint())
    return [*of_run(), RESUMED]


@case
def state_instantiator(place: Place) -> Commands:
    evil = {"_instantiator": "toughen_canary.run", "_class_path": "toughen_canary.Net", "__class__": "os.system"}
    return state(place, lambda found: found["data"].update(evil))


@case
def state_of_other_types(place: Place) -> Commands:
    return state(place, lambda found: found["data"].update(classes="toughen_canary:Net", image_shape={"a": "b"}))


@case
def state_without_data(place: Place) -> Commands:
    return state(place, lambda found: found.pop("data"))


@case
def state_without_best(place: Place) -> Commands:
    return state(place, lambda found: found.update(best=["os.system"]))


@case
def state_of_a_giant(place: Place) -> Commands:
    return state(place, lambda found: found["data"].update(classes=[str(i) for i in range(10**6)]))


@case
def state_of_a_wide_image(place: Place) -> Commands:
    return state(place, lambda found: found["data"].update(image_shape=[10**9, 28, 28]))


@case
def state_deep(place: Place) -> Commands:
    return state_text(place, DEEP)


@case
def state_twice(place: Place) -> Commands:
    return state_text(place, '{"data": {}, "data": {}}')


@case
def state_not_a_number(place: Place) -> Commands:
    return state_text(place, '{"data": NaN, "step": 1e999}')


@case
def state_of_digits(place: Place) -> Commands:
    return state_text(place, f'{{"step": {DIGITS}}}')


@case
def manifest_above(place: Place) -> Commands:
    place.run()
    entry = {"size": 1, "sha256": "0" * 64}
    files = {"../../../../x.safetensors": entry, "state.json": entry}
    (place.checkpoint() / "MANIFEST.json").write_bytes(_manifest(8, files))
    return [*of_run(), RESUMED]


@case
def checkpoint_of_pickles(place: Place) -> Commands:
    import pickle

    place.run()
    for path in place.checkpoint().glob("*.safetensors"):
        path.write_bytes(pickle.dumps(place.payload()))
    signed(place.checkpoint())
    return [*of_run(), RESUMED]


@case
def checkpoint_of_other_tensors(place: Place) -> Commands:
    import torch
    from safetensors.torch import save_file

    place.run()
    for path in place.checkpoint().glob("*.safetensors"):
        save_file({"../../x": torch.ones(2)}, path)
    signed(place.checkpoint())
    return of_run()


@case
def latest_outside(place: Place) -> Commands:
    run = place.run()
    shutil.copytree(run / "checkpoints", place / "elsewhere")
    for checkpoint in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(checkpoint)
    (run / "checkpoints" / "LATEST").write_text(f"../../elsewhere/{next((place / 'elsewhere').glob('step-*')).name}\n")
    return of_run()


@case
def latest_pipe(place: Place) -> Commands:
    run = place.run()
    for checkpoint in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(checkpoint)
    (run / "checkpoints" / "LATEST").unlink()
    os.mkfifo(run / "checkpoints" / "LATEST")
    return of_run()


@case
def latest_of_gigabytes(place: Place) -> Commands:
    run = place.run()
    for checkpoint in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(checkpoint)
    os.truncate(run / "checkpoints" / "LATEST", 2**31)
    return of_run()


def recipe_of_run(place: Place, change: Callable[[str], str]) -> Commands:
    path = place.run() / "recipe.yaml"
    path.write_text(change(path.read_text()))
    return of_run()


@case
def run_of_a_class_path(place: Place) -> Commands:
    return recipe_of_run(place, lambda text: text.replace("small_cnn", "toughen_canary.Net"))


@case
def run_of_a_function(place: Place) -> Commands:
    return recipe_of_run(place, lambda text: text.replace("name: free", "name: toughen_canary:run"))


@case
def run_of_a_suite(place: Place) -> Commands:
    return recipe_of_run(place, lambda text: text.replace("pgd-1", "toughen_canary.py:SUITE"))


@case
def run_of_yaml_tags(place: Place) -> Commands:
    evil = f"!!python/object/apply:os.system ['touch {place.canary}']"
    return recipe_of_run(place, lambda text: text.replace("small_cnn", evil))


@case
def run_with_links(place: Place) -> Commands:
    run = place.run()
    outside = place.folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "precious").write_text("precious")
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    (run / "evaluation").symlink_to(outside)
    return of_run()[:1]


@case
def run_with_a_linked_lock(place: Place) -> Commands:
    run = place.run()
    outside = place.folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "precious").write_text("precious")
    folder = run / "evaluation" / "pgd-1_n4"
    folder.mkdir(parents=True)
    (folder / ".lock").symlink_to(outside / "precious")
    return of_run()[:1]


# --- reports


def reported_file(place: Place, name: str, content: str | bytes) -> Commands:
    place.run()
    place.write(f"run/{name}", content)
    return reported()


@case
def report_alias_bomb(place: Place) -> Commands:
    from hostile_texts import alias_bomb

    return reported_file(place, "recipe.yaml", alias_bomb())


@case
def report_deep_recipe(place: Place) -> Commands:
    return reported_file(place, "recipe.yaml", "name: " + "[" * 20_000)


@case
def report_tags(place: Place) -> Commands:
    return reported_file(place, "recipe.yaml", f"!!python/object/apply:os.system ['touch {place.canary}']")


@case
def report_deep_summary(place: Place) -> Commands:
    return reported_file(place, "summary.json", DEEP)


@case
def report_markup(place: Place) -> Commands:
    place.run()
    path = place / "run/summary.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "name": MARKUP, "method": MARKUP, "threat": MARKUP, "device": MARKUP}))
    place.write(f"run/evaluation/{MARKUP.replace('/', '')}/result.json", json.dumps({"suite": MARKUP}))
    return reported()


@case
def report_broken_evaluation(place: Place) -> Commands:
    place.run()
    place.write("run/evaluation/a/result.json", DEEP)
    place.write("run/evaluation/b/result.json", json.dumps({"suite": "corruptions"}))
    place.write("run/evaluation/b/examples.parquet", b"PAR1" + bytes(100) + b"PAR1")
    place.write("run/metrics.jsonl", f'{DEEP}\n{{"step": {DIGITS}}}\n')
    return reported()


@case
def report_pickled_analysis(place: Place) -> Commands:
    from hostile_data import objects

    place.run()
    place.write("run/analysis/surface-0.npz", objects(place))
    place.write("run/analysis/gradients.json", DEEP)
    return reported()


@case
def report_bomb_of_an_analysis(place: Place) -> Commands:
    from hostile_data import np, npy

    place.run()
    (place / "run/analysis").mkdir(exist_ok=True)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (349525, 32, 32, 3)}"
    bomb(place / "run/analysis/surface-0.npz", "loss.npy", npy(np.zeros(0, np.uint8), header=header), 1024)
    place.write("run/analysis/surface-1.npz", npz_of(record=np.frombuffer(DEEP.encode(), np.uint8)))
    return reported()


def npz_of(**arrays: Any) -> bytes:
    import io

    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@case
def baseline_result(place: Place) -> Commands:
    place.write("evil/result.json", json.dumps({"suite": "corruptions", "corruptions": [MARKUP]}))
    place.write("evil/examples.parquet", b"PAR1" + bytes(100) + b"PAR1")
    command = ["evaluate", "small_cnn=good.pt", "--data", "mnist5k", "--suite", "corruptions", "--baseline"]
    place.write("deep/result.json", DEEP)
    return [[*command, "evil/result.json"], [*command, "deep"]]
