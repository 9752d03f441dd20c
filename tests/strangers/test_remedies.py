"""Every remedy that an audit names is real where it is given, and how sure a remedy is is said."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toughen
from masked import BALL, MASKS, QUICK, SHORT, audited, evaluated, masked, texts
from toughen.attacks import AttackSpec
from toughen.evaluation import audit, check, evaluate, transfer
from toughen.evaluation.audit import messages
from toughen.evaluation.audit.messages import ADVICE, CODES, MESSAGES
from toughen.evaluation.suites import check as check_suite
from toughen.evaluation.suites import find
from toughen.models.classifier import Classifier
from toughen.workflows.user_code import is_reference
from zoo import Around


def named(text: str) -> Iterator[tuple[str, str]]:
    """What a text names: suites, functions of toughen's, suites as dicts, references to files."""
    for match in re.finditer(r"suites? ([a-z][\w+-]*)(?:(?:, ([\w+-]+))? and ([a-z]+-?\w*))?", text):
        yield from (("suite", name) for name in match.groups() if name and name != "may")
    yield from (("function", name) for name in re.findall(r"toughen(?:\.\w+)+", text))
    yield from (("dict", value) for value in re.findall(r"\{\"[^}]*\}", text))
    yield from (("reference", value) for value in re.findall(r"FILE\.py:\w+", text))


def test_every_name_in_every_advice_is_real():
    assert list(ADVICE) == list(MESSAGES) == list(CODES)
    sources = [sentence for advice in ADVICE.values() for sentence in advice]
    sources += [messages.MORE_QUERIES, messages.TRANSFER, messages.BLACK_BOX]
    sources += [one.remedy for name in QUICK for one in audited(name).findings]
    everything = {item for text in sources for item in named(text)}
    assert {kind for kind, _ in everything} == {"suite", "function", "dict", "reference"}
    for kind, name in everything:
        if kind == "suite":
            find(name, BALL)
        elif kind == "function":
            target: Any = toughen
            for part in name.split(".")[1:]:
                target = getattr(target, part)
            assert callable(target), name
        elif kind == "dict":
            check_suite(eval(name, {"AttackSpec": AttackSpec}))
        else:
            assert is_reference(name)
    assert not re.search(r"--\w", "".join(sources))


def test_what_an_advice_says_can_be_written():
    found = MASKS["NaN in the gradient"]()
    x = found.x[:2].clone()
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="SqrtBackward"):
            found.model(x.requires_grad_()).sum().backward()
    x, y = found.x[:4], found.y[:4]
    mean = toughen.Ensemble([MASKS["random noise"]().model] * 32)
    assert evaluate(mean, x, y, threat=BALL, suite="pgd-1", audit=False).n == 4
    coarse = MASKS["rounded to 8 levels"]()
    net = coarse.model.get_submodule("net")
    copy = Around(net, lambda x: x + ((x * 8).round() / 8 - x).detach()).eval()
    shown = transfer(coarse.model, copy, x, coarse.y[:4], threat=BALL, attack=AttackSpec(name="pgd", steps=2))
    assert shown.summary()["n"] == 4


def test_one_image_at_a_time_an_output_depends_on_no_place_and_no_company():
    for name in ("seeded noise", "noise by a hash of the batch"):
        found = MASKS[name]()
        x, y = found.x[:16], found.y[:16]
        assert "batch size of 1" in texts(audit(found.model, x, y, threat=BALL))
        assert "EV213" not in audit(found.model, x, y, threat=BALL, batch_size=1).codes


def test_without_a_gradient_only_what_needs_none_is_advised():
    _, found = evaluated("thermometer")
    assert found.audit is not None
    text = "\n".join([texts(found.audit), *found.audit.not_checked])
    assert "No gradient of the output reaches the images." in text
    for suite in ("autoattack", "cw-100", "pgd-100", "suite square", "adaptive"):
        assert suite not in text
    assert "toughen.evaluation.transfer" in text
    assert messages.MORE_QUERIES in text
    assert not {"EV205", "EV281", "EV282", "EV283", "EV286"} & set(found.audit.codes)


def test_no_suite_is_advised_that_was_run():
    _, found = evaluated("negated gradient", SHORT)
    assert found.audit is not None
    text = texts(found.audit)
    assert "suite autoattack" not in text
    assert "suite square" not in text
    assert messages.MORE_QUERIES in text
    _, weak = evaluated("negated gradient", "pgd-20")
    assert weak.audit is not None
    assert "suite autoattack" in texts(weak.audit)


def test_what_pgd_of_the_audit_breaks_is_no_remedy_of_another_finding():
    problem = masked()
    weak: Any = {"nothing": lambda model, x, y: x}
    found = evaluate(problem.model, problem.x, problem.y, threat=BALL, suite=weak)
    assert found.audit is not None
    (one,) = found.audit.findings
    assert one.code == "EV288"
    assert "PGD-20 of the audit broke them: run suite autoattack" in one.remedy
    assert "other findings" not in str(one)


class Colours(nn.Module):
    """A small network with BatchNorm first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("steps", [8, 12])
def test_of_a_network_that_has_hardly_learnt_it_is_said_how_sure_a_normalisation_is(steps: int):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    draw = torch.Generator().manual_seed(1)
    x = 0.45 + 0.25 * torch.randn(256, 3, 8, 8, generator=draw)
    y = torch.arange(256) % 4
    x = (x + 0.04 * (y - 1.5).reshape(-1, 1, 1, 1)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Colours()
    model = Classifier(net, mean=mean, std=std).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(steps):
        rows = slice(32 * (step % 8), 32 * (step % 8) + 32)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    (item,) = [one for one in check(Classifier(net).eval(), x, y).items if one.what == "normalisation"]
    assert item.code == "EV222"
    assert item.remedy.startswith("Classifier(net, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).")
    assert "How sure this is: " in item.remedy
    assert f"by a network whose first BatchNorm has met {steps} batches only" in item.remedy
    assert "These images do not tell it apart from" in item.remedy
