"""How other people's code names the tensors of the networks here, and which network a state dict is of.

Each `KeyNames` renames the keys of a published definition to ours; no tensor is placed by its order or by its shape
alone. `identify` builds every network that the shapes suggest, without memory, and says how much of it agrees.

    identify(torch.load("trades.pt"))        # [("wrn-34-10", {"num_classes": 10, "in_channels": 3}, 1.0)]
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toughen.models.pretrained.groups import Names, beside
from toughen.models.registry import find

# Left out of every comparison: files of before 2018 lack it, and nothing depends on it at BatchNorm's fixed momentum.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class KeyNames:
    """The names that a published definition gives to a network that is also here.

    Attributes:
        name: whose they are.
        outside: the beginning of a key -> ours, outside the groups of units.
        unit: the beginning of a key in unit j of group i, as a regular expression with i and j.
        inside: what follows it -> ours.
        first: the number of the first group.
        unused: the beginning of keys that the definition holds but never computes with.
        options: what the definition does otherwise than our default and no shape tells.
    """

    name: str
    outside: Mapping[str, str] = field(default_factory=dict)
    unit: str = "(?!)"
    inside: Mapping[str, str] = field(default_factory=dict)
    first: int = 1
    unused: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def renamed(self, names: Names) -> tuple[Names, list[str]]:
        """The same with our keys where ours is known, and the file's keys that are unused."""
        unused = [original for key, original in names.items() if key.startswith(self.unused)]
        found = {self._ours(key): original for key, original in names.items() if not key.startswith(self.unused)}
        return found, unused

    def _ours(self, key: str) -> str:
        table, above, rest = self.outside, "", key
        if match := re.match(self.unit, key):
            table, above = self.inside, f"groups.{int(match[1]) - self.first}.{match[2]}."
            rest = key[match.end() :]
        for theirs, ours in table.items():
            if rest.startswith(f"{theirs}."):
                return f"{above}{ours}{rest.removeprefix(theirs)}"
        return key


OURS = KeyNames("toughen")
LAYOUTS = (
    KeyNames(
        "torchvision, timm and kuangliu/pytorch-cifar",
        {"conv1": "stem.0", "bn1": "stem.1", "fc": "linear", "linear": "linear"},
        r"layer([1-4])\.(\d+)\.",
        {
            **{f"{layer}{number}": f"branch.{layer}{number}" for layer in ("conv", "bn") for number in (1, 2, 3)},
            "downsample": "shortcut",
            "shortcut": "shortcut",
        },
    ),
    KeyNames(
        "locuslab/robust_overfitting",
        {"conv1": "stem", "bn": "last.0"},
        r"layer([1-4])\.(\d+)\.",
        {"bn1": "first.0", "bn2": "second.0", "conv1": "conv1", "conv2": "conv2", "shortcut.0": "shortcut"},
    ),
    KeyNames(
        "yaodongyu/TRADES",
        {"conv1": "stem", "bn1": "last.0", "fc": "linear"},
        r"block([1-3])\.layer\.(\d+)\.",
        {"bn1": "first.0", "bn2": "second.0", "conv1": "conv1", "conv2": "conv2", "convShortcut": "shortcut"},
        unused=("sub_block1.",),
        options={"padding": "both"},
    ),
    KeyNames(
        "google-deepmind's adversarial_robustness",
        {"init_conv": "stem", "batchnorm": "last.0", "logits": "linear"},
        r"layer\.([0-2])\.block\.(\d+)\.",
        {
            "batchnorm_0": "first.0",
            "batchnorm_1": "second.0",
            "conv_0": "conv1",
            "conv_1": "conv2",
            "shortcut": "shortcut",
        },
        first=0,
        options={"padding": "end"},
    ),
)


def agreement(names: Names, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The share of tensors, of the file's and the network's together, that agree in key and shape; in [0, 1].

    What is known to be none of the network's is not counted.
    """
    both = {key for key in {*names, *expected} - beside(names, expected, state) if not key.endswith(COUNTER)}
    same = sum(key in names and key in expected and state[names[key]].shape == expected[key].shape for key in both)
    return same / max(1, len(both))


def identify(state: Mapping[str, Tensor]) -> list[tuple[str, dict[str, Any], float]]:
    """Which of the networks here a state dict is of, best first.

    Args:
        state: keys and tensors, under our names or those of a `KeyNames`, without prefixes (see `load_weights`).

    Returns:
        For every network of which at least half agrees: its name, the options that `find(name)` builds it with
        (`num_classes` and `in_channels` among them) and the share of tensors that agree in key and shape. Empty where
        none does. Activations have no weights: they are not told apart.
    """
    found: dict[str, tuple[str, dict[str, Any], float]] = {}
    for layout in (OURS, *LAYOUTS):
        names, _ = layout.renamed({key: key for key in state})
        shapes = {key: tuple(state[original].shape) for key, original in names.items()}
        for name, options in _suggested(shapes):
            if name.startswith("wrn") and layout.options.get("padding") == "end":
                options = {**options, "padding": "end"}
            share = agreement(names, state, _on_meta(name, options))
            text = describe_network(name, options)
            if share >= 0.5 and share > found.get(text, ("", {}, 0.0))[2]:
                found[text] = (name, options, share)
    return sorted(found.values(), key=lambda row: -row[2])


def describe_network(name: str, options: Mapping[str, Any]) -> str:
    """A network of `identify` in words: its name, its classes and what else must be said to build it."""
    rest = {key: value for key, value in options.items() if key not in ("num_classes", "in_channels")}
    if options.get("in_channels", 3) != 3:
        rest["in_channels"] = options["in_channels"]
    more = "".join(f", {key}: {value}" for key, value in rest.items())
    classes = options.get("num_classes")
    return f"{name} with {classes} class{'es' * (classes != 1)}{more}" if classes else f"{name}{more}"


def _on_meta(name: str, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    try:
        builder = find(name)
    except ValueError:
        return {}
    return _built(name, getattr(builder, "func", builder), tuple(sorted(options.items())))


@functools.lru_cache(maxsize=64)
def _built(name: str, _: Callable[..., nn.Module], options: tuple[tuple[str, Any], ...]) -> Mapping[str, Tensor]:
    """The state of a network without memory; empty where its options are none. A file is compared with many groups."""
    try:
        with torch.device("meta"):
            return find(name)(**{"num_classes": 10, **dict(options)}).state_dict()
    except ValueError:
        return {}


Shapes = Mapping[str, tuple[int, ...]]


def _suggested(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Networks to compare with, from the shapes of a few tensors under our names."""
    linear = shapes.get("linear.weight", ())
    given = {"num_classes": linear[0]} if len(linear) == 2 else {}
    for first, suggest in (("stem.0.weight", _resnet), ("stem.weight", _preact), ("features.0.weight", _small_cnn)):
        if len(kernel := shapes.get(first, ())) == 4:
            for name, options in suggest(shapes, kernel):
                yield name, {**given, "in_channels": kernel[1], **options}


def _units(shapes: Shapes) -> tuple[int, ...]:
    """How many units each group has."""
    places = {(int(m[1]), int(m[2])) for key in shapes if (m := re.match(r"groups\.(\d+)\.(\d+)\.", key))}
    groups = {i for i, _ in places}
    return tuple(sum(i == group for i, _ in places) for group in sorted(groups))


BASIC = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
BOTTLENECK = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


def _resnet(shapes: Shapes, kernel: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    units = _units(shapes)
    if len(units) != 4:
        return
    deep = "groups.0.0.branch.conv3.weight" in shapes
    table = BOTTLENECK if deep else BASIC
    name = min(table, key=lambda name: sum(abs(a - b) for a, b in zip(table[name], units, strict=True)))
    if name == "resnet50" and shapes.get("groups.0.0.branch.conv1.weight", (0,))[0] == 2 * kernel[0]:
        name = "wide_resnet50_2"
    stem, usual = "imagenet" if kernel[2] == 7 else "cifar", "cifar" if name == "resnet18" else "imagenet"
    yield name, {**({"stem": stem} if stem != usual else {}), **({"width": kernel[0]} if kernel[0] != 64 else {})}


def _preact(shapes: Shapes, kernel: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    units = _units(shapes)
    if len(units) == 4 and "groups.0.first.0.weight" not in shapes:
        yield "preact_resnet18", {"width": kernel[0]} if kernel[0] != 64 else {}
    if len(units) == 3 and (first := shapes.get("groups.0.0.conv1.weight")):
        yield f"wrn-{6 * max(units) + 4}-{max(1, first[0] // 16)}", {}
    if first := shapes.get("groups.0.conv1.weight"):
        width = max(1, first[0] // 16)
        yield "madry-w32-10", {"width": width} if width != 10 else {}


def _small_cnn(shapes: Shapes, kernel: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    norm = {} if "features.0.bias" in shapes else {"norm": "batch"}
    yield "small_cnn", {**({"width": kernel[0]} if kernel[0] != 8 else {}), **norm}
