"""An attack as text: its name and settings, as recipes and suites write it, called like the function.

Example:
    spec = AttackSpec(name="pgd", steps=7, step_size="2/255")
    x_adv = spec(model, x, y, threat=Linf(8 / 255), noise=noise)
"""

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from toughen.attacks.contract import GIVEN, Attack, check_norm, is_minimal_norm, on_device_of
from toughen.attacks.registry import ATTACKS
from toughen.noise import Stream
from toughen.settings import NamedCall, known
from toughen.threat import Threat


class AttackSpec(NamedCall, frozen=True):
    """The name of an attack in `ATTACKS` and its settings."""

    given: ClassVar = GIVEN

    if TYPE_CHECKING:

        def __init__(self, *, name: str, **settings: Any): ...

    @classmethod
    def find(cls, name: str) -> Attack:
        """The attack of that name."""
        return ATTACKS[known(name, ATTACKS, "attack")]

    @property
    def minimal_norm(self) -> bool:
        """See `contract.minimal_norm`."""
        return is_minimal_norm(self.find(self.name))

    def check_norm(self, threat: Threat) -> None:
        """See `contract.check_norm`."""
        check_norm(self.find(self.name), threat)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, noise: Stream | None = None, **changes: Any
    ) -> Tensor:
        """Run the attack, with its input unchecked (see `contract.attack`).

        Settings among `changes` stand in for the spec's own, unchecked too: to look at a tensor would make the device
        wait.
        """
        self.check_norm(threat)
        function = inspect.unwrap(self.find(self.name))
        takes = inspect.signature(function).parameters
        given = {key: value for key, value in {"threat": threat, "noise": noise}.items() if key in takes}
        return function(model, x, y, **on_device_of(x, given), **on_device_of(x, self.settings | changes))
