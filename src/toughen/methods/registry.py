"""The training methods of this package by name. A new one is its own file and one line here."""

from toughen.methods.adversarial import AdversarialTraining
from toughen.methods.base import METHODS
from toughen.methods.bilateral import Bilateral
from toughen.methods.free import Free
from toughen.methods.instance_adaptive import InstanceAdaptive
from toughen.methods.interpolated import Interpolated
from toughen.methods.label_smoothing import LabelSmoothing
from toughen.methods.mart import Mart
from toughen.methods.mixup import Mixup
from toughen.methods.natural import Natural
from toughen.methods.trades import Trades

METHODS.update(
    {
        "natural": Natural,
        "adversarial": AdversarialTraining,
        "free": Free,
        "trades": Trades,
        "mart": Mart,
        "instance_adaptive": InstanceAdaptive,
        "bilateral": Bilateral,
        "interpolated": Interpolated,
        "mixup": Mixup,
        "label_smoothing": LabelSmoothing,
    }
)
