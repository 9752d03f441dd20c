"""Methods around a method: what changes a batch before any method sees it, and a method as a field, by name.

class Mirrored(Wrapper, frozen=True):
    name: Literal["mirrored"] = "mirrored"

    def changed(self, batch):
        return replace(batch, x=batch.x.flip(3))

Mirrored(method=Free(replays=4))        # in a recipe: method: {name: mirrored, method: {name: free, replays: 4}}
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, SerializeAsAny, field_validator
from torch import nn

from toughen.data import Batch
from toughen.methods.adversarial import AdversarialTraining
from toughen.methods.base import METHODS, Kind, Method, Objective, Seen, Spec, State
from toughen.settings import known, named
from toughen.threat import Threat


def _by_name(value: Any) -> Any:
    if isinstance(value, Method):
        return value
    settings = named(value)
    name = known(str(settings["name"]), METHODS, "method")
    return METHODS[name].model_validate(settings)


# A method as a field. Looked up at validation time, so that one registered from outside works; dumped with the settings
# of its own class, where pydantic would write those of `Method` alone.
AnyMethod = Annotated[SerializeAsAny[Method], BeforeValidator(_by_name)]


def nested(method: Method) -> Iterator[Method]:
    """A method, the one that it wraps, and so on inwards."""
    yield method
    while isinstance(method, Wrapper):
        method = method.method
        yield method


class Wrapper(Method, frozen=True):
    """A method that hands changed batches to another; in all else it is the other. A subclass writes `changed`.

    Attributes:
        method: the method inside, any that takes probabilities as labels: another wrapper too.
    """

    method: AnyMethod = AdversarialTraining()

    @field_validator("method")
    @classmethod
    def _takes_probabilities(cls, method: Method) -> Method:
        if not method.soft_labels:
            allowed = ", ".join(name for name, other in METHODS.items() if other.soft_labels)
            raise ValueError(f"{method.name} needs class numbers, not probabilities, as labels; wrap one of {allowed}")
        return method

    def changed(self, batch: Batch) -> Batch:
        """The batch that the method inside sees."""
        raise NotImplementedError

    @property
    def state_kinds(self) -> Mapping[str, Kind]:
        """Those of the method inside."""
        return self.method.state_kinds

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """Those of the method inside."""
        return self.method.forwards

    @property
    def robust_training(self) -> bool:
        """That of the method inside."""
        return self.method.robust_training

    @property
    def steps_per_batch(self) -> int:
        """Those of the method inside."""
        return self.method.steps_per_batch

    @property
    def second_derivatives(self) -> bool:
        """That of the method inside."""
        return self.method.second_derivatives

    def resolved(self, threat: Threat) -> Self:
        """With the run's threat model in the method inside, unless that has one of its own or needs none."""
        return self.model_copy(update={"method": self.method.resolved(threat)})

    def init(self, spec: Spec) -> State:
        """The state of the method inside."""
        return self.method.init(spec)

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """Those of the method inside, on the changed batch."""
        yield from self.method.losses(model, self.changed(batch), state)

    def metrics(self, state: State) -> dict[str, Any]:
        """Those of the method inside."""
        return self.method.metrics(state)

    def typical_state(self, spec: Spec) -> State:
        """That of the method inside."""
        return self.method.typical_state(spec)

    def predicted(self, batches: int) -> float:
        """The cost of the method inside: changing a batch takes no pass."""
        return self.method.predicted(batches)
