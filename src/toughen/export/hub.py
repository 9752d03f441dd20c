"""Exported folders on the Hugging Face Hub, private unless one asks for the opposite.

    push(Path("exports/mine"), "owner/name")        # the address; the login is that of `hf auth login`

Only the files that `toughen export` wrote are uploaded.
"""

import re
from pathlib import Path

from toughen.errors import Command, Option, UsageError
from toughen.models.exported import CONFIG, is_exported
from toughen.storage import files as store


def check_repository(repository: str) -> None:
    """Refuse what cannot be pushed to, before any work is done.

    Raises:
        ValueError: the name is not `owner/name` as the Hub allows it, or there is no login on this machine.
    """
    from huggingface_hub import get_token

    part = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
    well_formed = re.fullmatch(f"{part}/{part}", repository) and not re.search(r"--|\.\.|\.git$", repository)
    if not well_formed or len(repository) > 96:
        raise ValueError(
            f"{repository!r} is no name on the Hub; write owner/name, of letters, digits, '-', '_' and '.', like me/my"
        )
    if get_token() is None:
        raise ValueError("there is no login to the Hugging Face Hub on this machine; type: hf auth login")


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload an exported folder as a model repository, which is created where there is none.

    Args:
        folder: of `toughen export`.
        repository: "owner/name".
        public: whether everybody may see it. A repository that is there already must be so, or not, as it is.

    Returns:
        Its address.

    Raises:
        ValueError: the folder is no export, the name or the login is not accepted, the repository is public and this
            does not say so (or the reverse), or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not is_exported(folder):
        raise UsageError(f"{folder} is no exported model; give the ", Option("out"), " of a ", Command("export"))
    check_repository(repository)
    files = sorted([CONFIG, *store.read_json(folder / CONFIG).get("files", {})])
    # The error's parents are what the client's own connection raises, which differs between its versions.
    parents = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception]
    failures = (OSError, *parents)
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        private = bool(api.repo_info(repository, repo_type="model").private)
        if private == public:
            is_now, verb, end = ("private", "leave", "out") if private else ("public", "add", "to publish")
            option = Option("public", None if private else True)
            said = f"{repository} exists on the Hub and is {is_now}; {verb} "
            raise UsageError(said, option, f" {end}, or give another name")
        api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=folder,
            allow_patterns=files,
            commit_message="Model exported by toughen",
        )
    except failures as error:
        raise ValueError(_sentence(repository, error)) from None
    return f"{api.endpoint}/{repository}"


def _sentence(repository: str, error: Exception) -> str:
    """What went wrong and what to do. The error's own text is left out: it may quote the request."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refused {repository} ({status}); check the owner, and that your token may write: hf auth login"
    if status is not None:
        return f"the Hub refused {repository} (HTTP {status}); nothing else was changed, try again later"
    return (
        f"the Hub cannot be reached for {repository} ({type(error).__name__}); the folder is complete, connect to the "
        "network and give the same command again"
    )
