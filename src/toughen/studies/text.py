"""Studies as text: the shipped ones, a user's own, and what is wrong with one.

study = load("free-table-1")
study = load("mine.yaml")
"""

import os
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from toughen.errors import Command, UsageError
from toughen.recipes import RecipeError
from toughen.recipes.text import LONGEST, parse_yaml
from toughen.settings import nearest
from toughen.studies.schema import Study


class StudyError(UsageError):
    """What is wrong with a study, for its author."""


def shipped() -> dict[str, str]:
    """The studies that come with the package: name -> text."""
    folder = resources.files("toughen.studies") / "shipped"
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: files[name].read_text(encoding="utf-8") for name in sorted(files)}


def load(study: str) -> Study:
    """A shipped study by name, or one in a file.

    Raises:
        StudyError: there is none, or it is not one; with every fault, one line each.
    """
    if study.endswith((".yaml", ".yml")) or os.sep in study:
        try:
            with Path(study).open(encoding="utf-8") as file:
                text = file.read(LONGEST + 1)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise StudyError(f"study file {study} cannot be read: {reason}; check the path") from None
    elif (texts := shipped()).get(study) is None:
        guess = nearest(study, texts) or f"; see `{Command('study', 'list')}`"
        raise StudyError(f"{study!r} is no shipped study{guess} (or give the path of a YAML file)")
    else:
        text = texts[study]
    try:
        return Study.model_validate(parse_yaml(text, study))
    except RecipeError as error:
        raise StudyError(error) from None
    except ValidationError as error:
        faults = (f"{study}: {'.'.join(map(str, e['loc'])) or 'the study'}: {e['msg']}" for e in error.errors())
        raise StudyError("\n".join(fault.replace("Value error, ", "") for fault in faults)) from None
