"""What a folder is good for: finished work is not done twice, and never passed off as something else's."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.plan import SideAttack
from toughen.evaluation.work_unit import EvaluationTask
from toughen.models.cost import counted
from toughen.storage import files
from toughen.threat import L2, Linf, Threat
from toys import CLEAN_COUNT, Linear, labels, linear, network, photographs, rows, spec

X = photographs()
SUITE = {"fgsm": spec("fgsm"), "pgd": spec("pgd", steps=2, restarts=2)}


def run(folder: Path | None, **changes: Any) -> Evaluation:
    """Three units of the clean images, and at most three of each attack."""
    model = changes.pop("model", None) or network()
    given = {"x": X, "y": labels(network(), X.float() / 255), "threat": Linf(2 / 255), "suite": SUITE, "chunk_size": 16}
    given["audit"] = False
    return evaluate(model, folder=folder, **(given | changes))


class Stopped(Exception):
    """Thrown instead of a unit's work."""


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Let only so many units be worked on; the list of those that were."""
    return stopping(monkeypatch)


def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    clean, attacked = EvaluationTask.clean, EvaluationTask.run

    def start(most: int) -> list[str]:
        worked: list[str] = []

        def note(label: str) -> None:
            if len(worked) == most:
                raise Stopped
            worked.append(label)

        monkeypatch.setattr(EvaluationTask, "clean", lambda self, some: (note("clean"), clean(self, some))[1])
        monkeypatch.setattr(
            EvaluationTask, "run", lambda self, stage, some: (note(stage.label), attacked(self, stage, some))[1]
        )
        return worked

    return start


def begun(folder: Path, stop: Callable[[int], list[str]], units: int = 5, **changes: Any) -> None:
    stop(units)
    with pytest.raises(Stopped):
        run(folder, **changes)


def test_a_finished_folder_is_returned_after_one_clean_pass_of_a_chunk(tmp_path):
    first = run(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.name != ".lock"}
    assert names == {"clean_logits.safetensors", "examples.parquet", "result.json"}
    model = network()
    with counted(model) as passes:
        again = run(tmp_path, model=model)
    assert (passes.example_forwards, passes.example_backwards) == (16, 0)
    assert again.summary() == first.summary()
    assert rows(again) == rows(first) == rows(run(None))


@pytest.mark.parametrize("units", [0, 1, 3, 4, 6])
def test_what_was_begun_goes_on_where_it_was(units, stop, tmp_path):
    whole, audit = stop(99), units == 3
    expected = run(None, audit=audit)
    begun(tmp_path, stop, units, audit=audit)
    assert len(list((tmp_path / "units").glob("*.parquet"))) == units
    rest = stop(99)
    resumed = run(tmp_path, audit=audit)
    assert rest == whole[units:]
    assert rows(resumed) == rows(expected)
    assert resumed.audit == expected.audit
    assert resumed.seconds > 0


def other_weights() -> nn.Module:
    model = network()
    last = model[4]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias[0] += 1e-6
    return model


def statistics() -> nn.Module:
    model = network()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer[3] += 1e-3
    return model


def hidden_stride() -> nn.Module:
    """The same weights in another network: the padding is no parameter."""
    model = copy.deepcopy(network())
    model[0] = nn.Conv2d(3, 8, 3, padding_mode="reflect")
    model.load_state_dict(network().state_dict())
    return model


OTHER = {
    "weights": ({"model": other_weights()}, r"of another model \(or other weights of it\) \(\w{8}\.\.\., given \w{8}"),
    "buffers": ({"model": statistics()}, "of another model"),
    "network": ({"model": hidden_stride()}, "of another model"),
    "precision": ({"model": network().double()}, "of another model"),
    "images": ({"x": X.flip(0)}, r"of other images, labels or ids \(\w{8}\.\.\., given \w{8}"),
    "labels": ({"y": torch.arange(CLEAN_COUNT) % 5}, "of other images"),
    "ids": ({"index": torch.arange(CLEAN_COUNT) + 1}, "of other images"),
    "radius": ({"threat": Linf(3 / 255)}, r"of another threat model \(linf:2/255, given linf:3/255\)"),
    "norm": ({"threat": L2(2 / 255)}, "of another threat model"),
    "radii": ({"threat": Linf(torch.full((CLEAN_COUNT,), 2 / 255))}, "of another threat model"),
    "settings": ({"suite": SUITE | {"pgd": spec("pgd", steps=3)}}, "of other attacks, corruptions or settings;"),
    "attacks": ({"suite": {"fgsm": spec("fgsm")}}, "of other attacks, corruptions or settings;"),
    "order": ({"suite": dict(reversed(SUITE.items()))}, "of other attacks, corruptions or settings;"),
    "seed": ({"seed": 1}, r"of another seed \(0, given 1\)"),
    "chunk": ({"chunk_size": 8}, r"of another chunk_size \(16, given 8\)"),
    "cascade": ({"independent": True}, r"of another order of the attacks .* \(cascade, given independent\)"),
    "keep": ({"keep": "uint8"}, "of another choice of what to keep"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Evaluations that are done or begun, without and with their adversarial examples; not to be written to."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("done", "begun", "whole", "kept")}
    run(found["done"])
    run(found["whole"], keep="float32")
    with pytest.MonkeyPatch.context() as patch:
        begun(found["begun"], stopping(patch))
    with pytest.MonkeyPatch.context() as patch:
        begun(found["kept"], stopping(patch), keep="float32")
    return found


@pytest.mark.parametrize("state", ["done", "begun"])
@pytest.mark.parametrize(("changes", "says"), OTHER.values(), ids=OTHER)
def test_a_folder_of_another_evaluation_is_refused_and_kept(changes, says, state, folders, saving):
    before = saving.contents(folders[state])
    with pytest.raises(ValueError, match=rf"EV271 .* holds an evaluation {says}.*give another folder, or delete it"):
        run(folders[state], **changes)
    assert saving.contents(folders[state]) == before


def test_radii_are_told_apart_by_value_also_aside(tmp_path):
    radii = torch.linspace(0.01, 0.02, CLEAN_COUNT)
    run(tmp_path / "main", threat=Linf(radii))
    run(tmp_path / "main", threat=Linf(radii.clone()))
    with pytest.raises(ValueError, match=r"EV271 .* of another threat model"):
        run(tmp_path / "main", threat=Linf(radii.flip(0)))
    run(tmp_path / "aside", suite={"a": SideAttack(spec("fgsm"), L2(radii))})
    with pytest.raises(ValueError, match=r"EV271 .* of another value of attack a;"):
        run(tmp_path / "aside", suite={"a": SideAttack(spec("fgsm"), L2(radii.flip(0)))})


def test_a_function_of_another_source_is_another_attack(tmp_path):
    def suite(sign: int) -> dict[str, Any]:
        if sign > 0:

            def mine(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
                return (x + threat.eps).clamp(0, 1)
        else:

            def mine(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
                return (x - threat.eps).clamp(0, 1)

        return {"mine": mine}

    run(tmp_path, suite=suite(1))
    run(tmp_path, suite=suite(1))
    with pytest.raises(ValueError, match=r"EV271 .* of other code of mine;"):
        run(tmp_path, suite=suite(-1))


def test_another_batch_size_may_go_on(stop, tmp_path):
    begun(tmp_path, stop)
    stop(99)
    assert run(tmp_path, batch_size=3).robust_accuracy == run(None).robust_accuracy


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    elif how == "foreign":
        path.write_text("[1, 2]")
    else:
        data[int(how) % len(data)] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "empty", "missing", "foreign", "99", "700", "-9"])
@pytest.mark.parametrize(
    "kind", ["units/001-00000.parquet", "units/001-00000.json", "adversarial/001-00000.safetensors"]
)
def test_a_unit_with_a_damaged_file_is_worked_on_again(kind, how, stop, saving, folders, tmp_path):
    shutil.copytree(folders["kept"], tmp_path / "begun")
    spoil(tmp_path / "begun" / kind, how)
    worked = stop(99)
    run(tmp_path / "begun", keep="float32")
    # Of the five that were done, the first of fgsm is begun again; then the third, and those of pgd.
    assert worked == ["fgsm", "fgsm", *["pgd"] * (len(worked) - 2)]
    whole, begun = (saving.contents(folder) for folder in (folders["whole"], tmp_path / "begun"))
    for contents in (whole, begun):
        result = json.loads(contents.pop("result.json"))
        assert result["seconds"] > 0
    assert whole == begun


def test_what_a_kill_left_is_swept(stop, tmp_path):
    run(tmp_path / "whole", keep="float32")
    stop(5)
    with pytest.raises(Stopped):
        run(tmp_path / "begun", keep="float32")
    for place in (".", "units", "adversarial"):
        (tmp_path / "begun" / place / ".tmp-17-abcdef00").write_bytes(b"half a fi")
    stop(99)
    run(tmp_path / "begun", keep="float32")
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        for folder in (tmp_path / "whole", tmp_path / "begun")
    ]
    assert names[0] == names[1]
    # A kill between the result and the end.
    (tmp_path / "begun" / "units").mkdir()
    run(tmp_path / "begun", keep="float32")
    assert not (tmp_path / "begun" / "units").exists()


def test_a_disk_that_refuses_loses_nothing_that_was_done(saving, monkeypatch, tmp_path):
    run(tmp_path / "whole")
    expected = (tmp_path / "whole" / "examples.parquet").read_bytes()
    folder, faults, point = tmp_path / "faults", 0, 0
    while True:
        # Each attempt gets a little further than the one before: what it had done is not done again.
        monkeypatch.setattr(files, "point", saving.stop_at(11 + point % 5, saving.fail))
        try:
            run(folder)
        except saving.Fault:
            faults, point = faults + 1, point + 1
            assert faults < 40
        else:
            break
    assert faults > 3
    assert (folder / "examples.parquet").read_bytes() == expected
    assert saving.leftovers(folder) == []


def test_two_processes_do_not_write_one_folder(tmp_path):
    script = (
        "import sys; from pathlib import Path; from toughen.storage import files as store\n"
        f"with store.lock(Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(files.Locked, match=rf"RN531 .*{other.pid}"):
        run(tmp_path)
    other.communicate()
    run(tmp_path)


def test_a_result_without_an_identity_is_nobodys(tmp_path):
    evaluation = run(None)
    dataclasses.replace(evaluation, identity={}).write(tmp_path)
    with pytest.raises(ValueError, match=r"EV271 .* holds an evaluation of another version of toughen"):
        run(tmp_path)


def test_a_float64_model_goes_on_in_float64(tmp_path):
    model, x, y = linear(40)
    assert isinstance(model, Linear)
    first = evaluate(model, x, y, threat=Linf(0.05), suite="pgd-2", folder=tmp_path)
    assert rows(evaluate(model, x, y, threat=Linf(0.05), suite="pgd-2", folder=tmp_path)) == rows(first)


def test_keep_needs_a_folder_and_a_known_form(tmp_path):
    with pytest.raises(ValueError, match="there is no folder to keep adversarial examples in"):
        run(None, keep="uint8")
    with pytest.raises(
        ValueError, match=r"'uint16' is not a known form of adversarial examples; .* did you mean 'uint8'"
    ):
        run(tmp_path, keep="uint16")
