"""What a stranger's own code raises, on whichever pass: one sentence that names it as theirs, with its line."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

from toughen.attacks import pgd
from toughen.cli.app import app
from toughen.data.base import Split
from toughen.data.pseudo_labelling.build import label
from toughen.evaluation import check, corruption_accuracy, evaluate
from toughen.evaluation.analyses.gradients import gradient_magnitude
from toughen.evaluation.analyses.sweeps import step_sweep
from toughen.evaluation.audit.audit import audit
from toughen.models import refusals
from toughen.models.classifier import Classifier
from toughen.threat import Linf

K, BALL = 3, Linf(0.1)
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % K
PIXELS = (255 * X).round().to(torch.uint8)


class Linear(nn.Module):
    """Takes images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(64, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def raising(wrong: Callable[[Linear, Tensor], Any], when: Callable[[Tensor], bool]) -> Linear:
    class Raises(Linear):
        def forward(self, x: Tensor) -> Tensor:
            if when(x):
                wrong(self, x)
            return super().forward(x)

    return Raises().eval()


def labelled(model: nn.Module, out: Path) -> None:
    label(Split(PIXELS, Y), model, test_images=PIXELS[:1].flip(3), classes="abc", counts=[3], out=out / "extra")


VERBS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "evaluate": lambda model, out: evaluate(model, X, Y, threat=BALL, suite="pgd-2"),
    "audit": lambda model, out: audit(model, X, Y, threat=BALL),
    "attack": lambda model, out: pgd(model, X, Y, threat=BALL, steps=2),
    "corruptions": lambda model, out: corruption_accuracy(model, PIXELS, Y, corruptions=["contrast"], severities=[1]),
    "step sweep": lambda model, out: step_sweep(model, X, Y, threat=BALL, steps=[2]),
    "gradient magnitude": lambda model, out: gradient_magnitude(model, X, Y),
    "label": labelled,
}

WRONG: dict[str, tuple[Callable[[Linear, Tensor], Any], str]] = {
    "KeyError": (lambda model, x: {}["flux"], "KeyError: 'flux'"),
    "AttributeError": (lambda model, x: model.tail, "AttributeError: 'Raises' object has no attribute 'tail'"),
    "ZeroDivisionError": (lambda model, x: 1 // 0, "ZeroDivisionError: .* by zero"),
    "RuntimeError": (lambda model, x: x @ x.new_zeros(5, 5), "mat1 and mat2|Expected size|size"),
}


@pytest.mark.parametrize(("wrong", "says"), WRONG.values(), ids=WRONG)
def test_an_error_on_every_input_is_theirs_and_no_size_is_blamed(
    wrong: Callable[[Linear, Tensor], Any], says: str, tmp_path: Path
):
    for verb, call in VERBS.items():
        with pytest.raises(ValueError, match=rf"({says}).* \(test_refusals\.py, line \d+\)") as caught:
            call(raising(wrong, lambda x: True), tmp_path / verb)
        text = str(caught.value)
        assert "\n" not in text
        if verb in ("evaluate", "audit", "corruptions", "gradient magnitude") and "size" not in says:
            assert text.startswith("EV226 the model raises on images of 1x8x8, and on those of other sizes: ")
            assert text.endswith("; mend that")


@pytest.mark.parametrize("verb", [name for name in VERBS if name not in ("corruptions", "gradient magnitude", "label")])
def test_an_error_under_attack_alone_is_theirs(verb: str, tmp_path: Path):
    def moved(x: Tensor) -> bool:
        return not any(torch.equal(image, known) for image in x[:1] for known in X) and bool(x.any())

    model = raising(lambda model, x: {}["flux"], moved)
    with pytest.raises(ValueError, match=r"the model raises KeyError: 'flux' \(test_refusals\.py, line \d+\)$"):
        VERBS[verb](model, tmp_path)


@pytest.mark.parametrize("verb", [name for name in VERBS if name != "label"])
def test_an_error_for_more_than_one_image_is_theirs(verb: str, tmp_path: Path):
    model = raising(lambda model, x: x.view(1, 64), lambda x: len(x) > 1)
    with pytest.raises(ValueError, match=r"is invalid for input of size \d+ \(test_refusals\.py, line \d+\)"):
        VERBS[verb](model, tmp_path)


def test_an_error_of_a_gradient_of_their_own_is_theirs(tmp_path: Path):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise KeyError("flux")

    class Net(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(Broken.apply(x))

    for verb in ("evaluate", "attack", "gradient magnitude"):
        with pytest.raises(ValueError, match=r"the model raises KeyError: 'flux' \(test_refusals\.py, line \d+\)$"):
            VERBS[verb](Net().eval(), tmp_path)


def test_what_the_callers_other_code_raises_stays_as_it_is():
    class Stop(Exception):
        pass

    def stop(*given: Any, **more: Any) -> Any:
        raise Stop

    with pytest.raises(Stop):
        evaluate(Linear(), X, Y, threat=BALL, suite="pgd-1", progress=stop, audit=False)
    with pytest.raises(Stop):
        evaluate(Linear(), X, Linear()(X).argmax(1), threat=BALL, suite={"mine": stop}, audit=False)


def test_check_names_the_line_too():
    found = check(raising(WRONG["KeyError"][0], lambda x: True), X, Y)
    (item,) = [item for item in found.items if item.verdict == "wrong"]
    assert item.code == "EV226"
    assert "KeyError: 'flux' (test_refusals.py, line " in item.evidence


class Wanting(nn.Module):
    def forward(self, x: Tensor, flag: bool) -> Tensor:
        return x.flatten(1)


class Reentrant(Linear):
    def forward(self, x: Tensor) -> Any:
        return checkpoint(super().forward, x, use_reentrant=True)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: Linear, r"^Linear is a class; give a model of it, such as Linear\(\)$"),
    "not yet initialised": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(K)), r"run it on one image first$"),
    "an argument more": (Wanting, r"missing 1 required positional argument: 'flag' \(where it is called\)"),
    "checkpoints of activations": (Reentrant, r"give use_reentrant=False there$"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize(("make", "says"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_run_or_followed_is_one_sentence_with_the_way(
    make: Callable[[], Any], says: str, tmp_path: Path
):
    for verb in ("evaluate", "audit", "attack"):
        with pytest.raises(ValueError, match=says):
            VERBS[verb](make(), tmp_path)


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module as if pip had put it beside torch."""
    path = folder / "their_net.py"
    path.write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def forward(self, x):\n        return {}['flux']\n\n\n"
        "def project(ball, delta):\n    raise KeyError('flux')\n"
    )
    monkeypatch.setattr(refusals, "INSTALLED", (*refusals.INSTALLED, str(folder)))
    spec = importlib.util.spec_from_file_location("their_net", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_network_of_an_installed_package_is_theirs_and_what_we_call_of_one_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    theirs = installed(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"KeyError: 'flux' \(their_net\.py, line 6\)"):
        evaluate(theirs.Net(), X, Y, threat=BALL, suite="pgd-1")
    monkeypatch.setattr(Linf, "project", theirs.project)
    with pytest.raises(KeyError, match="flux"):
        pgd(Linear(), X, Y, threat=BALL, steps=1)


REMEDIES: dict[str, tuple[nn.Module, Tensor, str]] = {
    "channels last": (
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        torch.rand(2, 16, 16, 3),
        r"channels come last in these: give x\.permute\(0, 3, 1, 2\)",
    ),
    "grey for colour": (
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        torch.rand(2, 1, 16, 16),
        r"it takes images of 3 channels: give view=ResizeCrop\(16\), which makes all images RGB$",
    ),
    "colour for grey": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        torch.rand(2, 3, 16, 16),
        r"it takes images of 1 channels$",
    ),
    "a first convolution that is not the stem": (
        nn.Sequential(
            nn.Flatten(), nn.Linear(28 * 28, 16), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 2, 2), nn.Flatten()
        ),
        torch.rand(2, 1, 32, 32),
        r"it takes 1x28x28: give view=ResizeCrop\(28\)$",
    ),
    "no usual side": (
        nn.Sequential(nn.Flatten(), nn.Linear(50 * 50, 2)),
        torch.rand(2, 1, 32, 32),
        r"nor those of usual sizes; look at what it expects, and give view=ResizeCrop\(N\) for another side$",
    ),
    "ours of other channels": (
        Classifier(
            nn.Sequential(nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), mean=(0.5,) * 4, std=(1,) * 4
        ),
        torch.rand(2, 3, 16, 16),
        r"it takes images of 4 channels$",
    ),
}


@pytest.mark.parametrize(("model", "x", "says"), REMEDIES.values(), ids=REMEDIES)
def test_what_is_said_to_help_does(model: nn.Module, x: Tensor, says: str):
    with pytest.raises(ValueError, match=rf"^EV226 the model does not take images of .*{says}"):
        evaluate(model.eval(), x, torch.tensor([0, 1]), threat=BALL, suite="pgd-1")


def test_a_suite_of_their_own_that_fails_is_theirs_at_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import torch\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
    )
    Path("mine.py").write_text(
        "def attack(model, x, y, *, threat):\n    return {}['flux']\n\n\nSUITE = {'mine': attack}\n"
        "BROKEN = {'mine': lambda model, x, y, *, threat: x + threat.none}\n"
    )
    given = ["evaluate", "net.py:build", "--data", "mnist5k", "--threat", "linf:0.1", "--limit", "64", "--suite"]
    for name, says in {"SUITE": "KeyError: 'flux'", "BROKEN": "AttributeError: 'Linf' object has no"}.items():
        done = CliRunner().invoke(app, [*given, f"mine.py:{name}"])
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith(f"error: 'mine.py:{name}' fails: {says}")
        assert done.stderr.strip().endswith(("mine.py, line 2)", "mine.py, line 6)"))
        assert done.stderr.count("\n") == 1
