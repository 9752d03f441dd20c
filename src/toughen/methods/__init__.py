"""Training methods: frozen objects that say what one batch asks of the optimiser."""

from toughen.methods.adversarial import AdversarialTraining
from toughen.methods.base import Method, Objective, Spec, State
from toughen.methods.free import Free
from toughen.methods.natural import Natural
from toughen.methods.registry import METHODS

__all__ = ["METHODS", "AdversarialTraining", "Free", "Method", "Natural", "Objective", "Spec", "State"]
