"""Names of timm and of the Hub, against a stand-in for timm; nothing is fetched."""

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toughen.models import build, find_head, pretrained_normalization, replace_head
from toughen.models.pretrained import timm_import
from toughen.models.registry import find
from toughen.recipes.schema import ModelSpec

NAMES = ["resnet18", "resnet50", "vit_tiny", "new_net"]
TAGGED = ["resnet50.a1_in1k", "resnet50.ram_in1k", "vit_tiny.augreg"]


class Net(nn.Module):
    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 4, 3)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        self.fc = nn.Linear(4, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Timm(ModuleType):
    """What is used of timm, and a record of it."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.asked: list[tuple[str, bool]] = []
        self.failure: Exception | None = None
        self.models = SimpleNamespace(load_model_config_from_hf=self._config)

    def list_models(self, *, pretrained: bool = False) -> list[str]:
        return TAGGED if pretrained else NAMES

    def is_model_pretrained(self, name: str) -> bool:
        return name != "new_net"

    def get_pretrained_cfg(self, name: str) -> Any:
        return None if name == "new_net" else SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))

    def create_model(self, name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        self.asked.append((name, pretrained))
        if self.failure:
            raise self.failure
        return Net(num_classes, in_chans)

    def _config(self, name: str) -> tuple:
        if self.failure:
            raise self.failure
        return ({"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]} if name == "me/net" else {}, name, {})


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Timm:
    module = Timm()
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_a_network_of_timm_is_built_trained_and_given_a_new_head(timm: Timm):
    torch.manual_seed(0)
    model = build("timm:resnet50", num_classes=10, in_channels=1, mean=(0.5,), std=(0.2,))
    assert timm.asked == [("resnet50", False)]
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = nn.functional.cross_entropy(model(x), y)
    first.backward()
    optimizer.step()
    assert nn.functional.cross_entropy(model(x), y) < first
    assert find_head(model)[0] == replace_head(model, 3) == "net.fc"
    assert model(x).shape == (8, 3)


def test_pretrained_weights_are_asked_for_when_told(timm: Timm):
    build("timm:resnet50.a1_in1k", num_classes=10, pretrained=True)
    build("hub:me/net", num_classes=10)
    build("hub:me/net", num_classes=10, pretrained=False)
    assert timm.asked == [("resnet50.a1_in1k", True), ("hf-hub:me/net", True), ("hf-hub:me/net", False)]
    with pytest.raises(ValueError, match="timm has no pretrained weights of new_net; leave out pretrained, or give w"):
        build("timm:new_net", num_classes=10, pretrained=True)


def test_a_recipe_is_checked_without_fetching(timm: Timm):
    spec = ModelSpec.model_validate({"name": "timm:resnet50", "pretrained": True})
    assert spec.settings["pretrained"] is True
    assert timm.asked == [("resnet50", False)]
    assert ModelSpec.model_validate("hub:me/net").settings["pretrained"] is True
    assert len(timm.asked) == 1
    with pytest.raises(ValueError, match="did you mean 'pretrained'"):
        ModelSpec.model_validate({"name": "timm:resnet50", "pretrain": True})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet19", "timm has no model 'resnet19'; did you mean 'resnet18' or 'resnet50'?"),
        ("timm:resnet50.a2_in1k", "timm has no model 'resnet50.a2_in1k'; did you mean 'resnet50.a1_in1k' or 'resn"),
        ("timm:zzzzzzz", "timm has no model 'zzzzzzz'; timm.list_models() has the names"),
        ("hub:net", "'hub:net' is not a name on the Hub; write hub:OWNER/NAME, like hub:timm/resnet18.a1_in1k"),
        ("hub:a/b/c", "'hub:a/b/c' is not a name on the Hub"),
        ("tim:resnet18", "'tim:resnet18' is not a known model; allowed: small_cnn, resnet18"),
    ],
)
def test_refused_names(timm: Timm, name: str, words: str):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        find(name)
    assert not timm.asked


def test_normalisation_of_pretrained_weights(timm: Timm):
    assert pretrained_normalization("timm:resnet50.a1_in1k") == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert pretrained_normalization("hub:me/net") == ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    for name in ("timm:new_net", "hub:me/other", "resnet50"):
        assert pretrained_normalization(name) is None
    with pytest.raises(ValueError, match="timm has no model 'resnet51'"):
        pretrained_normalization("timm:resnet51")


def test_no_network_and_no_such_repository(timm: Timm):
    timm.failure = FileNotFoundError("no file in the cache\nat all")
    words = (
        "{} needs a file from the Hugging Face Hub that is not there or cannot be reached (FileNotFoundError); check "
        "the name and the network, or give weights you have as a file to toughen.models.load_weights"
    )
    for name in ("timm:resnet50", "hub:me/net"):
        with pytest.raises(ValueError, match=f"^{re.escape(words.format(name))}$"):
            build(name, num_classes=10, pretrained=True)
    with pytest.raises(ValueError, match=f"^{re.escape(words.format('hub:me/net'))}$"):
        pretrained_normalization("hub:me/net")
    timm.failure = RuntimeError("no such layer\nand more")
    with pytest.raises(ValueError, match=r"^timm:resnet50 cannot be built: no such layer$"):
        build("timm:resnet50", num_classes=10)


@pytest.mark.parametrize("name", ["timm:resnet18", "hub:timm/resnet18"])
def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, "timm", None)
    extra = name.partition(":")[0]
    with pytest.raises(ValueError, match=rf"^{name} needs timm; install it with: pip install 'toughen\[{extra}\]'$"):
        find(name)


class Imports:
    """In place of `importlib.import_module`: fails as torchvision does, a number of times."""

    def __init__(self, times: int, error: str) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self, name: str) -> ModuleType:
        self.calls += 1
        if self.calls <= self.times:
            sys.modules["torchvision.broken"] = ModuleType("torchvision.broken")
            raise RuntimeError(self.error)
        return Timm()


@pytest.fixture
def _libraries(monkeypatch: pytest.MonkeyPatch):
    declared: list[Any] = []
    monkeypatch.setattr(timm_import, "_declared", declared)
    yield
    sys.modules.pop("torchvision.broken", None)
    for library in declared:
        library._destroy()


@pytest.mark.usefixtures("_libraries")
def test_a_torchvision_of_another_build_is_made_to_import(monkeypatch: pytest.MonkeyPatch):
    imports = Imports(1, "operator torchvision::nms does not exist")
    monkeypatch.setattr(timm_import.importlib, "import_module", imports)
    assert isinstance(timm_import.import_beside_torchvision("timm"), Timm)
    assert imports.calls == 2
    assert "torchvision.broken" not in sys.modules
    assert str(torch.ops.torchvision.nms.default._schema).startswith(
        "torchvision::nms(Tensor dets, Tensor scores, float"
    )


@pytest.mark.usefixtures("_libraries")
@pytest.mark.parametrize(("times", "error"), [(9, "operator torchvision::nms does not exist"), (1, "no memory")])
def test_an_import_that_fails_otherwise_gets_a_sentence(monkeypatch: pytest.MonkeyPatch, times: int, error: str):
    monkeypatch.setattr(timm_import.importlib, "import_module", Imports(times, f"{error}\nmore"))
    with pytest.raises(ValueError, match=f"needs timm, which does not import here: {error}; reinstall torchvision$"):
        find("timm:resnet18")
