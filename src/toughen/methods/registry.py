"""Every training method by name. A new one is its own file and one line here."""

from toughen.methods.adversarial import AdversarialTraining
from toughen.methods.base import Method
from toughen.methods.free import Free
from toughen.methods.natural import Natural

METHODS: dict[str, type[Method]] = {
    "natural": Natural,
    "adversarial": AdversarialTraining,
    "free": Free,
}
