"""Training methods: frozen objects that say what one batch asks of the optimiser.

Four papers go by short names, here and everywhere: Free (Shafahi et al. 2019, "Adversarial training for free!"), Limits
(Gowal et al. 2020, "Uncovering the limits of adversarial training"), IAAT (Balaji et al. 2019, "Instance adaptive
adversarial training") and Bilateral (Wang & Zhang 2019, "Bilateral adversarial training"). docs/methods/README.md cites
them in full, and has a page for each method: its equation, settings, deviations and traps.
"""

from toughen.methods.adversarial import AdversarialTraining
from toughen.methods.base import Kind, Method, Objective, Robust, Seen, Spec, State, classes_only
from toughen.methods.bilateral import Bilateral
from toughen.methods.free import Free
from toughen.methods.instance_adaptive import InstanceAdaptive
from toughen.methods.interpolated import Interpolated
from toughen.methods.label_smoothing import LabelSmoothing
from toughen.methods.mart import Mart
from toughen.methods.mixup import Mixup
from toughen.methods.natural import Natural
from toughen.methods.registry import METHODS
from toughen.methods.trades import Trades
from toughen.methods.wrapper import AnyMethod, Wrapper

__all__ = [
    "METHODS",
    "AdversarialTraining",
    "AnyMethod",
    "Bilateral",
    "Free",
    "InstanceAdaptive",
    "Interpolated",
    "Kind",
    "LabelSmoothing",
    "Mart",
    "Method",
    "Mixup",
    "Natural",
    "Objective",
    "Robust",
    "Seen",
    "Spec",
    "State",
    "Trades",
    "Wrapper",
    "classes_only",
]
