"""Training methods: frozen objects that say what one batch asks of the optimiser."""

from toughen.methods.adversarial import AdversarialTraining
from toughen.methods.base import Kind, Method, Objective, Robust, Seen, Spec, State, classes_only
from toughen.methods.free import Free
from toughen.methods.natural import Natural
from toughen.methods.registry import METHODS

__all__ = [
    "METHODS",
    "AdversarialTraining",
    "Free",
    "Kind",
    "Method",
    "Natural",
    "Objective",
    "Robust",
    "Seen",
    "Spec",
    "State",
    "classes_only",
]
