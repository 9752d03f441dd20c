"""Pushing to the Hub, with a Hub of our own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from toughen.export import export, push

TOKEN = "hf_a-secret-that-nobody-may-see"


class Fake:
    """A Hub that remembers what it was asked for."""

    def __init__(self) -> None:
        self.endpoint = "https://hub.invalid"
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.private: bool | None = None
        self.uploaded: dict[str, bytes] = {}
        self.failing: Exception | None = None

    def create_repo(self, repo_id: str, **given: Any) -> None:
        if self.failing:
            raise self.failing
        self.calls.append(("create", {"repo_id": repo_id, **given}))
        assert given["exist_ok"]
        if self.private is None:
            self.private = given["private"]

    def repo_info(self, repo_id: str, **given: Any) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **given: Any) -> None:
        self.calls.append(("upload", given))
        self.uploaded = {name: (folder_path / name).read_bytes() for name in allow_patterns}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    return fake


@pytest.fixture
def out(bare: Path, tmp_path: Path) -> Path:
    export(bare, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("public", [False, True])
def test_what_was_exported_is_uploaded_and_nothing_else(hub: Fake, out: Path, public: bool):
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "notes.txt").write_text("mine alone")
    assert push(out, "me/mine", public=public) == "https://hub.invalid/me/mine"
    assert hub.uploaded == written
    assert hub.private is not public
    kinds = [(kind, given["repo_id"], given["repo_type"]) for kind, given in hub.calls]
    assert kinds == [("create", "me/mine", "model"), ("upload", "me/mine", "model")]
    assert TOKEN not in str(hub.calls)


@pytest.mark.parametrize(
    ("private", "said"), [(False, "is public; add public=True"), (True, "is private; leave public out")]
)
def test_who_may_see_a_repository_is_never_changed_by_the_way(hub: Fake, out: Path, private: bool, said: str):
    hub.private = private
    with pytest.raises(ValueError, match=said):
        push(out, "me/mine", public=private)
    assert hub.uploaded == {}
    assert push(out, "me/mine", public=not private)


@pytest.mark.parametrize(
    "name",
    ["mine", "me/", "/mine", "me/my/own", "me/a b", "me/a--b", "me/../b", "me/.b", "me/b.git", "ö/b", "m/" + "a" * 96],
)
def test_names_that_the_hub_would_refuse_are_refused_at_once(hub: Fake, out: Path, name: str):
    with pytest.raises(ValueError, match="is no name on the Hub; write owner/name"):
        push(out, name)
    assert hub.calls == []


def test_the_name_rule_is_that_of_the_client(hub: Fake, out: Path):
    for name in ("me/mine", "Some-One/my_model.v2", "a/b"):
        huggingface_hub.utils.validate_repo_id(name)
        push(out, name)


def test_no_login(hub: Fake, out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="no login to the Hugging Face Hub on this machine; type: hf auth login"):
        push(out, "me/mine")
    assert hub.calls == []


def refused(status: int) -> Exception:
    response = SimpleNamespace(
        status_code=status, headers={}, request=SimpleNamespace(headers={"authorization": TOKEN})
    )
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"refused for {TOKEN}")
    error.response = response  # pyright: ignore[reportAttributeAccessIssue]
    return error


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        (ConnectionError(f"{TOKEN} cannot connect"), "the Hub cannot be reached for me/mine .ConnectionError."),
        (OfflineModeIsEnabled("offline"), "the Hub cannot be reached for me/mine .OfflineModeIsEnabled."),
        (refused(401), "refused me/mine .401.; check the owner, and that your token may write"),
        (refused(403), "refused me/mine .403."),
        (refused(500), "refused me/mine .HTTP 500."),
    ],
)
def test_a_failure_is_one_sentence_without_the_token(hub: Fake, out: Path, failing: Exception, said: str):
    hub.failing = failing
    with pytest.raises(ValueError, match=said) as caught:
        push(out, "me/mine")
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_only_exports_are_pushed(hub: Fake, tmp_path: Path):
    with pytest.raises(ValueError, match="is no exported model"):
        push(tmp_path, "me/mine")
    assert hub.calls == []
