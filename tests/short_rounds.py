"""The suites that plan as they go, with little work in each of their rounds."""

from collections.abc import Mapping
from dataclasses import replace

from toughen.attacks import AttackSpec
from toughen.evaluation.adaptive import Round

LITTLE = {"steps": 5, "queries": 20, "restarts": 1, "neighbours": 2, "targets": 2}


def shortened(rounds: Mapping[str, Round]) -> dict[str, Round]:
    """The same rounds."""

    def short(attack: AttackSpec) -> AttackSpec:
        less = {key: value for key, value in LITTLE.items() if key in attack.settings}
        return AttackSpec.model_validate({"name": attack.name, **attack.settings} | less)

    return {label: replace(item, attack=short(item.attack)) for label, item in rounds.items()}
