"""Networks of strangers in training: as written in any way, or refused before the first step."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toughen import models
from toughen.models import MODELS
from toughen.recipes.text import build
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import acceleration, train
from toughen.training.acceleration import Acceleration, chosen_ways, measured, takes_channels_last

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Viewing(nn.Module):
    """Flattens by `view`, which takes one layout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.head(h.view(len(h), -1))


def test_a_network_that_does_not_run_with_channels_last_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    viewing, taking = models.Classifier(Viewing()), models.build("small_cnn", num_classes=3, in_channels=1, width=2)
    assert not takes_channels_last(viewing, (1, 8, 8), CPU)
    assert takes_channels_last(taking, (1, 8, 8), CPU)
    assert all(parameter.grad is None for model in (viewing, taking) for parameter in model.parameters())
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    ways, said = measured(viewing, x, y, bf16=(False,), compiles=False)
    assert not ways.channels_last
    assert "channels_last" not in said
    # By the rule of a GPU, which this is not.
    monkeypatch.setattr(acceleration, "by_rule", lambda recipe, device: Acceleration(channels_last=True, tf32=True))
    monkeypatch.setattr(
        acceleration, "takes_channels_last", lambda model, shape, _: takes_channels_last(model, shape, CPU)
    )
    notes: list[str] = []
    for model in (viewing, taking):
        chosen_ways(
            build({"data": "mnist5k", "model": "small_cnn", "method": "natural", "threat": "linf:0.1", "steps": 2}),
            model,
            (4, 1, 8, 8),
            GPU,
            notes.append,
            False,
        )
    assert notes == [
        "computing in tf32 (fast: rule; the network does not run in channels_last)",
        "computing in channels_last, tf32 (fast: rule)",
    ]


class Plain(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 3, 3, stride=2), nn.BatchNorm2d(3)
        self.head = nn.Linear(27, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


def logits(net: Plain, x: Tensor) -> Tensor:
    return net.head(net.features(x).flatten(1))


def written(answer: Callable[[Plain, Tensor], Any]) -> Callable[..., nn.Module]:
    class Written(Plain):
        def forward(self, x: Tensor) -> Any:
            return answer(self, x)

    def made(num_classes: int, in_channels: int = 3) -> nn.Module:
        return Written(num_classes, in_channels)

    return made


SAME: dict[str, Callable[[Plain, Tensor], Any]] = {
    "a tuple": lambda net, x: (logits(net, x), None),
    "a mapping": lambda net, x: {"logits": logits(net, x)},
    "an object with logits": lambda net, x: SimpleNamespace(logits=logits(net, x)),
    "first operation in place": lambda net, x: logits(net, x.mul_(1.0)),
    "view": lambda net, x: net.head(net.features(x).view(len(x), -1)),
}

REFUSED: dict[str, tuple[Callable[[Plain, Tensor], Any], str]] = {
    "no_grad": (lambda net, x: torch.no_grad()(logits)(net, x), "no gradient of its output reaches its weights"),
    "one logit": (lambda net, x: logits(net, x)[:, :1], "the model returned one number z for each image"),
    "too few logits": (lambda net, x: logits(net, x)[:, :2], "mine returns 2 logits, and the data has 4 classes; give"),
    "another mapping": (lambda net, x: {"out": logits(net, x)}, "the model returns a mapping of out; it must return"),
    "raises": (lambda net, x: {}["flux"], r"mine raises on images of 1x8x8, .* KeyError: 'flux' \(test_training\.py, "),
    "raises in training mode": (
        lambda net, x: {}["flux"] if net.training else logits(net, x),
        r"does not take 1x8x8 images in training mode \(KeyError: 'flux' \(test_training\.py, line",
    ),
}


def trained(tiny: str, out: Path) -> dict[str, Tensor]:
    recipe = {"data": {"source": tiny, "validation": 20}, "model": "mine", "steps": 3, "batch_size": 32, "seed": 3}
    attack = {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}}
    train(build({**recipe, "method": attack, "threat": "linf:0.1", "selection": "pgd-1"}), out)
    found = latest_checkpoint(out, warn=pytest.fail)
    assert found is not None
    return found.tensors("weights")


def test_a_network_trains_to_the_same_weights_however_it_is_written(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(MODELS, "mine", written(logits))
    expected = trained(tiny, tmp_path / "plain")
    for name, answer in SAME.items():
        monkeypatch.setitem(MODELS, "mine", written(answer))
        found = trained(tiny, tmp_path / name)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("answer", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    answer: Callable[[Plain, Tensor], Any], says: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(MODELS, "mine", written(answer))
    with pytest.raises(ValueError, match=says) as caught:
        trained(tiny, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_a_network_raises_at_a_later_step_is_theirs(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []

    def late(net: Plain, x: Tensor) -> Tensor:
        seen.append(net.training and len(x) == 32)
        return {}["flux"] if sum(seen) > 1 else logits(net, x)

    monkeypatch.setitem(MODELS, "mine", written(late))
    with pytest.raises(ValueError, match=r"the model raises KeyError: 'flux' \(test_training\.py, line \d+\)$"):
        trained(tiny, tmp_path / "run")
