"""toughen: train image classifiers that withstand adversarial examples, and measure robustness one can trust.

The public names. They are loaded when first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toughen import attacks, corruptions, data, evaluation, losses, methods, models, recipes, testing, workflows
    from toughen.evaluation import Evaluation, check, evaluate
    from toughen.models import Classifier, Ensemble
    from toughen.models.exported import load_model
    from toughen.recipes import Recipe
    from toughen.threat import L2, Linf
    from toughen.training import train

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "toughen.models",
    "Ensemble": "toughen.models",
    "Evaluation": "toughen.evaluation",
    "L2": "toughen.threat",
    "Linf": "toughen.threat",
    "Recipe": "toughen.recipes",
    "check": "toughen.evaluation",
    "evaluate": "toughen.evaluation",
    "load_model": "toughen.models.exported",
    "train": "toughen.training",
}
_ROOMS = (
    "attacks",
    "corruptions",
    "data",
    "evaluation",
    "losses",
    "methods",
    "models",
    "recipes",
    "testing",
    "workflows",
)

__all__ = [
    "L2",
    "Classifier",
    "Ensemble",
    "Evaluation",
    "Linf",
    "Recipe",
    "attacks",
    "check",
    "corruptions",
    "data",
    "evaluate",
    "evaluation",
    "load_model",
    "losses",
    "methods",
    "models",
    "recipes",
    "testing",
    "train",
    "workflows",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its room."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(f"toughen.{name}")
    raise AttributeError(f"module 'toughen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
