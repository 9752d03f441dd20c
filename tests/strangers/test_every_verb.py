"""Models as strangers write them, through the verbs that `test_models` leaves: the plain figures, or a sentence."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from strangers.test_models import BALL, RIGHT, WITHOUT_GRADIENT, X, made
from strangers.test_models import Plain as Network
from toughen.attacks import AttackSpec
from toughen.cli.app import app
from toughen.data.base import Split
from toughen.data.pseudo_labelling.build import label
from toughen.evaluation import adaptive, evaluate
from toughen.evaluation.analyses.gradients import gradient_magnitude
from toughen.evaluation.analyses.image_grid import pictures
from toughen.evaluation.analyses.landscape import loss_surface, weakly_bounded
from toughen.evaluation.analyses.sweeps import eps_sweep, step_sweep
from toughen.evaluation.analyses.transfer import transfer
from toughen.evaluation.suites import SUITES

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*quantiz"),
]

# Inside [0, 1] by more than a surface reaches, where one network clips its input.
INNER = 0.2 + 0.6 * X
PIXELS = (255 * INNER).round().to(torch.uint8)
SHORT = AttackSpec(name="pgd", steps=2)


def answers() -> Tensor:
    with torch.no_grad():
        return made(Network)(INNER).argmax(1)


def labelled(model: Any, out: Path) -> Any:
    test = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    done = label(Split(PIXELS, answers()), model, test_images=test, classes="abcd", counts=[8], threshold=0.1, out=out)
    return [row["count"] for row in done["sets"]], pq.read_table(
        next(out.glob("train-*.parquet")), columns=["label", "pool_index"]
    ).to_pylist()


NEEDS_NO_GRADIENT: dict[str, Callable[[Any, Path], Any]] = {
    "label": labelled,
    "transfer onto": lambda model, out: transfer(
        model, made(Network), INNER, answers(), threat=BALL, attack=SHORT
    ).survived.tolist(),
}

NEEDS_GRADIENT: dict[str, Callable[[Any, Path], Any]] = {
    # Not by round: the mean of probabilities has other logits, by a constant, to which the rounds' starts lean.
    "adaptive": lambda model, out: (
        evaluate(model, INNER, answers(), threat=BALL, suite="adaptive", audit=False).robust_accuracy
    ),
    "eps sweep": lambda model, out: eps_sweep(
        model, INNER, answers(), radii=[0.02, 0.05], suite="pgd-2"
    ).survived.tolist(),
    "step sweep": lambda model, out: step_sweep(model, INNER, answers(), threat=BALL, steps=[1, 2]).survived.tolist(),
    "gradient magnitude": lambda model, out: gradient_magnitude(model, INNER, answers()).norm.round(4).tolist(),
    "loss surface": lambda model, out: (
        loss_surface(model, INNER[:2], answers()[:2], radius=0.1, points=3).loss.round(3).tolist()
    ),
    "weakly bounded": lambda model, out: weakly_bounded(model, INNER[:2], answers()[:2], steps=2).prediction.tolist(),
    "transfer from": lambda model, out: transfer(
        made(Network), model, INNER, answers(), threat=BALL, attack=SHORT
    ).survived.tolist(),
    "pictures": lambda model, out: pictures(
        model, PIXELS, answers(), threats={"ball": BALL}, steps=2, title="images", classes="abcd"
    ).prediction.tolist(),
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adaptive suite without its last rounds, of which each takes as many passes as all before."""
    few = dict(list(adaptive.ROUNDS.items())[:5])
    monkeypatch.setitem(SUITES, "adaptive", lambda threat: adaptive.Adaptive(few))


def refused_function(name: str, verb: str) -> bool:
    """A set's manifest names the weights that labelled it, which a function has none of."""
    return verb == "label" and name in ("a plain function", "a function without")


@pytest.mark.parametrize(
    ("verb", "call"), (NEEDS_NO_GRADIENT | NEEDS_GRADIENT).items(), ids=NEEDS_NO_GRADIENT | NEEDS_GRADIENT
)
def test_a_model_gives_the_plain_networks_figures(verb: str, call: Callable[[Any, Path], Any], tmp_path: Path):
    expected = call(made(Network), tmp_path / "plain")
    for number, (name, make) in enumerate(RIGHT.items()):
        if refused_function(name, verb):
            with pytest.raises(ValueError, match=r"a plain function does not say .* give a torch\.nn\.Module$"):
                call(make(), tmp_path / str(number))
        else:
            assert call(make(), tmp_path / str(number)) == expected, name


@pytest.mark.parametrize(("verb", "call"), NEEDS_NO_GRADIENT.items(), ids=NEEDS_NO_GRADIENT)
def test_what_needs_no_gradient_runs_without(verb: str, call: Callable[[Any, Path], Any], tmp_path: Path):
    expected = call(made(Network), tmp_path / "plain")
    for number, (name, make) in enumerate(WITHOUT_GRADIENT.items()):
        if not refused_function(name, verb) and name != "quantised":
            assert call(make(), tmp_path / str(number)) == expected, name


@pytest.mark.parametrize("call", NEEDS_GRADIENT.values(), ids=NEEDS_GRADIENT)
def test_what_needs_a_gradient_says_so(call: Callable[[Any, Path], Any], tmp_path: Path):
    for name, make in WITHOUT_GRADIENT.items():
        with pytest.raises(
            ValueError, match=r"no gradient .*suite=\"square\"\).*toughen\.evaluation\.transfer\)$"
        ) as caught:
            call(make(), tmp_path / name)
        assert "\n" not in str(caught.value), name


NETWORK = """
import torch
from types import SimpleNamespace
from torch import nn


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.conv, self.head = kind, nn.Conv2d(1, 3, 3, stride=3), nn.Linear(243, 10)

    def forward(self, x):
        if self.kind == "in place":
            x.mul_(1.0)
        h = self.conv(x).relu()
        z = self.head(h.view(h.size(0), -1))
        if self.kind == "raises":
            return z.flux
        forms = {"tuple": (z, 0), "mapping": {"logits": z}, "object": SimpleNamespace(logits=z), "one": z[:, :1]}
        return forms.get(self.kind, z.detach() if self.kind == "no gradient" else z)


def plain(): return Net("plain")
def in_place(): return Net("in place")
def tuple_(): return Net("tuple")
def mapping(): return Net("mapping")
def object_(): return Net("object")
def one(): return Net("one")
def no_gradient(): return Net("no gradient")
def raises(): return Net("raises")
"""

COMMANDS = {
    "evaluate": ["--threat", "linf:0.1", "--suite", "pgd-2", "--limit", "40"],
    "check": ["--limit", "40"],
    "analyse": ["--threat", "linf:0.1", "--limit", "40", "--only", "gradients,step-sweep"],
}


def command(verb: str, name: str) -> Any:
    out = [] if verb == "check" else ["--out", f"{verb}-{name}"]
    return CliRunner().invoke(app, [verb, f"net.py:{name}", "--data", "mnist5k", *COMMANDS[verb], *out])


@pytest.mark.parametrize("verb", COMMANDS)
def test_at_the_command_line_too(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    figures = []
    for name in ("plain", "in_place", "tuple_", "mapping", "object_"):
        done = command(verb, name)
        # A check of a network that has learnt nothing has something to say.
        assert done.exit_code == (3 if verb == "check" else 0), done.output
        figures.append(re.findall(r"[0-9.]+ ?%", done.output))
    assert all(figure == figures[0] for figure in figures), figures
    says = {"one": "one number z for each image", "raises": "object has no attribute 'flux' (net.py, line 19)"}
    for name, text in says.items():
        done = command(verb, name)
        if verb == "check":
            # In a table, whose lines are cut.
            assert text.partition(" (")[0].partition(" for")[0] in done.output, done.output
        else:
            assert done.exit_code == 2, done.output
            assert text in done.stderr
            assert done.stderr.count("\n") == 1
    done = command(verb, "no_gradient")
    if verb != "check":
        assert done.exit_code == 2
        assert "--suite square" in done.stderr
