"""Hostile descriptions: exported models, recipes, studies and names. Importing it enters them into `CASES`."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from hostile import AIM, MARKUP, SMALL, Commands, Place, case, of_exported
from tiny_study import write_tiny_study

DEEP = "[" * 100_000 + "]" * 100_000


# --- exported models


def exported(place: Place, change: Callable[[dict[str, Any]], object]) -> Commands:
    """An exported model that describes itself otherwise."""
    from safetensors import safe_open
    from safetensors.torch import save

    folder = place.exported()
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        config = json.loads(opened.metadata()["toughen"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    change(config)
    file.write_bytes(save(tensors, metadata={"toughen": json.dumps(config)}))
    files = {"model.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}
    (folder / "config.json").write_text(json.dumps({**config, "files": files}))
    return of_exported()


def architecture(name: Any, options: Any = ()) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(architecture={"name": name, "options": dict(options)})


@case
def exported_class_path(place: Place) -> Commands:
    return exported(place, architecture("toughen_canary.Net"))


@case
def exported_file(place: Place) -> Commands:
    return exported(place, architecture("toughen_canary.py:Net"))


@case
def exported_above(place: Place) -> Commands:
    return exported(place, architecture("../../x"))


@case
def exported_no_name(place: Place) -> Commands:
    return exported(place, architecture({"_target_": "os.system"}))


@case
def exported_from_the_hub(place: Place) -> Commands:
    return exported(place, architecture("hub:evil/x"))


@case
def exported_giant(place: Place) -> Commands:
    return exported(place, architecture("wrn-10000-10000"))


@case
def exported_wide(place: Place) -> Commands:
    return exported(place, architecture("small_cnn", {"width": 3000}))


@case
def exported_options(place: Place) -> Commands:
    evil = {"_instantiator": "toughen_canary.run", "width": "os.system"}
    return exported(place, architecture("small_cnn", evil))


@case
def exported_other_types(place: Place) -> Commands:
    evil = {"view": {"size": "os.system", "_target_": "x"}, "threat": ["os.system"], "classes": 7, "data": [{}]}
    return exported(place, lambda config: config.update(evil, num_classes="10"))


@case
def exported_normalization(place: Place) -> Commands:
    evil = {"kind": "mean_std", "mean": ["toughen_canary.Net"], "std": [{"_target_": "os.system"}]}
    return exported(place, lambda config: config.update(normalization=evil))


@case
def exported_list(place: Place) -> Commands:
    exported(place, lambda config: None)
    from safetensors.torch import save

    (place / "exported/model.safetensors").write_bytes(save({}, metadata={"toughen": "[1]"}))
    return of_exported()


@case
def exported_config(place: Place) -> Commands:
    place.exported()
    place.write("exported/config.json", DEEP)
    return [["evaluate", "exported", *AIM]]


# --- texts


def alias_bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines) + "\n"


def recipe(place: Place, text: str) -> Commands:
    place.write("evil.yaml", text)
    out = ["--out", "out"]
    return [
        ["train", "evil.yaml"],
        ["study", "run", "evil.yaml", *out],
        ["study", "run", "evil.yaml", "--dry-run", *out],
    ]


@case
def yaml_object(place: Place) -> Commands:
    return recipe(place, SMALL + f"seed: !!python/object/apply:os.system ['touch {place.canary}']\n")


@case
def yaml_module(place: Place) -> Commands:
    return recipe(place, SMALL + "seed: !!python/module:toughen_canary\n")


@case
def yaml_alias_bomb(place: Place) -> Commands:
    return recipe(place, alias_bomb())


@case
def yaml_brackets(place: Place) -> Commands:
    return recipe(place, "data: " + "[" * 20_000)


@case
def yaml_twice(place: Place) -> Commands:
    return recipe(place, SMALL + "steps: 9\n")


@case
def yaml_megabytes(place: Place) -> Commands:
    return recipe(place, SMALL + "# " + "x" * 5_000_000)


@case
def yaml_of_names(place: Place) -> Commands:
    commands = []
    for number, name in enumerate(("../../x", "a\\0b", "a\\nb", MARKUP, "x" * 100_000, "/etc/x", "..")):
        place.write(f"{number}.yaml", SMALL.replace("name: small\n", f'name: "{name}"\n'))
        commands.append(["train", f"{number}.yaml"])
    return commands


@case
def yaml_model_above(place: Place) -> Commands:
    return place.recipe("name: small_cnn", "name: ../../x")


@case
def yaml_model_of_a_module(place: Place) -> Commands:
    return [
        *place.recipe("name: small_cnn", "name: toughen_canary.Net"),
        *place.recipe("name: free, replays: 2", "name: toughen_canary:run"),
        *place.recipe("suite: pgd-1", "suite: toughen_canary.py:SUITE"),
    ]


@case
def yaml_model_without_end(place: Place) -> Commands:
    place.write("evil.yaml", SMALL.replace("{name: small_cnn, width: 2}", f"wrn-{10**30}-{10**30}"))
    place.write("wide.yaml", SMALL.replace("width: 2", "width: 100000"))
    return [["train", "evil.yaml"], ["train", "wide.yaml", "--out", "out"]]


@case
def yaml_of_digits(place: Place) -> Commands:
    return place.recipe("steps: 8", f"steps: {'9' * 5000}")


@case
def yaml_not_a_number(place: Place) -> Commands:
    return [*place.recipe("linf:0.1", "linf:nan"), *place.recipe("steps: 8", "steps: .inf")]


@case
def yaml_base_outside(place: Place) -> Commands:
    return recipe(place, "base: /etc/hostname\n")


@case
def yaml_bytes(place: Place) -> Commands:
    place.write("evil.yaml", b"\xff\xfe\x00" * 100)
    return [["train", "evil.yaml"], ["study", "run", "evil.yaml"]]


# --- studies


def study(place: Place, change: Callable[[dict[str, Any]], object]) -> Commands:
    """A study's folder that asks for something else."""
    from toughen.studies.create import create_folder
    from toughen.studies.text import load

    write_tiny_study(place.folder)
    create_folder(load(str(place / "tiny.yaml")), "toy", place / "study", name="tiny")
    path = place / "study/study.json"
    asked = json.loads(path.read_text())
    change(asked)
    path.write_text(json.dumps(asked))
    return of_study()


def of_study() -> Commands:
    """Everywhere that a study's folder is read."""
    return [
        ["study", "work", "study"],
        ["study", "status", "study"],
        ["study", "table", "study"],
        ["report", "study", "--plain"],
    ]


@case
def study_above(place: Place) -> Commands:
    def change(asked: dict[str, Any]) -> None:
        (asked["trainings"]["../../outside/run"],) = list(asked["trainings"].values())[:1]
        next(iter(asked["rows"].values()))["trainings"] = ["../../outside/run"]

    return study(place, change)


@case
def study_measure_above(place: Place) -> Commands:
    def change(asked: dict[str, Any]) -> None:
        for row in asked["rows"].values():
            row["measures"]["pgd-2"]["folder"] = "../../../../outside"

    return study(place, change)


@case
def study_of_a_function(place: Place) -> Commands:
    def change(asked: dict[str, Any]) -> None:
        for row in asked["rows"].values():
            row["measures"]["pgd-2"]["column"]["suite"] = "toughen_canary.py:SUITE"

    return study(place, change)


@case
def study_without_rows(place: Place) -> Commands:
    return study(place, lambda asked: asked.pop("rows"))


@case
def study_of_other_types(place: Place) -> Commands:
    return study(place, lambda asked: asked.update(rows=[MARKUP], trainings="os.system"))


@case
def study_deep(place: Place) -> Commands:
    place.write("study/study.json", DEEP)
    return of_study()


@case
def study_of_broken_results(place: Place) -> Commands:
    commands = study(place, lambda asked: None)
    for training in json.loads((place / "study/study.json").read_text())["trainings"]:
        place.write(f"study/runs/{training}/summary.json", '{"alarms": 7}')
        place.write(f"study/runs/{training}/timing.jsonl", DEEP[:4000] + "\n")
        place.write(f"study/runs/{training}/recipe.yaml", "[]")
    return commands[2:]


@case
def study_file_of_a_function(place: Place) -> Commands:
    write_tiny_study(place.folder)
    text = (place / "tiny.yaml").read_text()
    place.write("evil.yaml", text.replace("pgd-2: pgd-2", "pgd-2: toughen_canary.py:SUITE"))
    return [["study", "run", "evil.yaml", "--scale", "toy", "--dry-run", "--out", "o"]]
