"""Whether the Hub can be reached, against sockets of this machine; nothing outside it is asked."""

import socket
import sys
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

from models.pretrained.test_timm import Timm
from toughen.models import build, pretrained_normalization
from toughen.models.pretrained import hub_access
from toughen.models.pretrained.hub_access import answers, cache_where_unreachable

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_host_that_listens_and_one_that_does_not(listening: int):
    assert answers(f"https://127.0.0.1:{listening}/some/path")
    assert not answers(f"https://127.0.0.1:{closed()}")
    assert not answers("https://127.0.0.1:notaport")
    assert not answers("https://no-such-host.invalid")


def test_the_proxy_is_asked_where_there_is_one(listening: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening}")
    assert answers("https://no-such-host.invalid")
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{closed()}")
    assert not answers(f"https://127.0.0.1:{listening}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert answers(f"https://127.0.0.1:{listening}")


def test_a_name_that_is_looked_up_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    stop = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: [stop.wait()][1:])
    assert not answers("https://127.0.0.1:1", within=0.05)
    stop.set()


def test_an_address_that_leads_nowhere_does_not_hide_one_that_answers(listening: int, monkeypatch: pytest.MonkeyPatch):
    stop, nowhere = threading.Event(), closed()
    look_up, connect = socket.getaddrinfo, socket.create_connection

    def looked_up(host: str, *given: object, **more: object) -> list[tuple]:
        if host != "two.invalid":
            return look_up(host, *given, **more)  # type: ignore[arg-type]
        kind = socket.AF_INET, socket.SOCK_STREAM, 6, ""
        return [(*kind, ("127.0.0.1", port)) for port in (nowhere, listening)]

    def connected(address: tuple[str, int], within: float) -> socket.socket:
        if address[1] == nowhere:
            stop.wait()
            raise TimeoutError
        return connect(address, within)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(socket, "create_connection", connected)
    assert answers("https://two.invalid")
    stop.set()


def stand_in(monkeypatch: pytest.MonkeyPatch, port: int, *, offline: bool = False) -> SimpleNamespace:
    """The Hub's client, as far as it is used."""
    module = ModuleType("huggingface_hub")
    constants = SimpleNamespace(HF_HUB_OFFLINE=offline, ENDPOINT=f"http://127.0.0.1:{port}")
    vars(module)["constants"] = constants
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return constants


def test_offline_only_where_the_hub_does_not_answer_and_only_for_a_while(
    listening: int, monkeypatch: pytest.MonkeyPatch
):
    constants = stand_in(monkeypatch, listening)
    with cache_where_unreachable():
        assert constants.HF_HUB_OFFLINE is False
    constants = stand_in(monkeypatch, closed())
    with pytest.raises(KeyError), cache_where_unreachable():
        raise KeyError
    assert constants.HF_HUB_OFFLINE is False
    with cache_where_unreachable():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False


def test_a_user_who_is_offline_stays_so_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch):
    def never(url: str) -> bool:
        raise AssertionError(url)

    monkeypatch.setattr(hub_access, "answers", never)
    constants = stand_in(monkeypatch, 1, offline=True)
    with cache_where_unreachable():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is True
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with cache_where_unreachable():
        pass


@pytest.mark.parametrize("name", ["timm:resnet50", "hub:me/net"])
def test_networks_are_fetched_under_it(monkeypatch: pytest.MonkeyPatch, name: str):
    constants, found = stand_in(monkeypatch, closed()), []

    class Watching(Timm):
        def create_model(self, *given: Any, **more: Any) -> nn.Module:
            found.append(constants.HF_HUB_OFFLINE)
            return super().create_model(*given, **more)

        def _config(self, name: str) -> tuple:
            found.append(constants.HF_HUB_OFFLINE)
            return super()._config(name)

    monkeypatch.setitem(sys.modules, "timm", Watching())
    build(name, num_classes=3, pretrained=True)
    pretrained_normalization(name)
    assert found == [True] * (1 if name.startswith("timm") else 2)
    # What needs nothing from the Hub asks nobody.
    build("timm:resnet50", num_classes=3)
    assert found[-1] is False
