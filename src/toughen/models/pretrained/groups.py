"""Which tensors of a file are a network's, whatever lies around them and beside them.

Training codes wrap networks (`module.`, `model.`), keep averages, teachers and queues beside them, and losses and
metrics within the same module. A *group* is what lies under one beginning of names; the group that has all of a
network's names and shapes is that network's, and all else is left aside.

    for group in groups_of(tensors, least=10):
        print(group.prefix, len(group.names))
    normalization_of(group, tensors, "a.pt")       # ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)) where the file bundles one
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toughen.models.classifier import MeanStd
from toughen.models.pretrained.files import NO_WEIGHTS

Names = dict[str, str]  # key under a layout -> key in the file

ROOT = "."
"""The key of what lies in no entry of a file, and under no beginning of names."""

# How deep groups are looked for, and how many are looked at: the largest.
_STOREYS = 9
_GROUPS = 64

# What torch, DDP, FSDP, Opacus and activation checkpointing put into names, also amid them.
_WRAPPERS = frozenset(("module", "_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
# What profilers count in each layer.
_COUNTED = ("total_ops", "total_params")
# What training codes keep in the very module that is the network: losses, metrics, queues, averages, other heads.
_BESIDE = re.compile(
    r"(?:\w*_)?(?:loss(?:es|_?fn|_?func\w*)?|criteri(?:on|a|ons)|cross_?entropy|b?ce|focal|metrics?|acc|accuracy|auroc"
    r"|auc|f1_?score|cm|precision|recall|confmat|confusion\w*|queue\w*|memory_?bank\w*|bank|centers?|prototypes?|ema"
    r"|averaged?|n_averaged|swa|shadow|teacher|student|momentum\w*|target_net\w*|encoder_[qk]|attacker|proj\w*"
    r"|contrast\w*|rot\w*_head|aux\w*_head|class_weights?|pos_weight|temperature)(?:_\w+|\d+)?",
    re.IGNORECASE,
)
_PAIRS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))


@dataclass(frozen=True)
class Group:
    """What lies under one beginning of names.

    Attributes:
        prefix: the beginning, empty or with a dot at its end.
        names: what follows it, without wrappers amid it where `own` is false -> key in the file.
        own: whether the names are as in the file.
    """

    prefix: str
    names: Names
    own: bool = True

    @property
    def key(self) -> str:
        """What the user chooses it by."""
        return self.prefix.rstrip(".") or ROOT


def prefix_of(key: str | None) -> str:
    """The beginning of names that a key stands for."""
    return "" if key in (None, ROOT) else f"{key}."


def groups_of(tensors: Iterable[str], least: int, key: str | None = None) -> list[Group]:
    """The groups in a file, the outermost first; and those with wrappers amid their names once more without these.

    Args:
        tensors: the keys of the file.
        least: how many tensors a group must have.
        key: the beginning of names that is meant; without one what an optimiser keeps is passed over.
    """
    start = prefix_of(key)
    under: dict[str, Names] = {start: {}}
    for name in tensors:
        for prefix in _prefixes(name, start):
            under.setdefault(prefix, {})[name[len(prefix) :]] = name
    large = [
        (prefix, names)
        for prefix, names in under.items()
        if prefix == start or (len(names) >= least and not (key is None and NO_WEIGHTS.search(prefix)))
    ]
    large = sorted(large, key=lambda item: -len(item[1]))[:_GROUPS]
    own = [Group(prefix, names) for prefix, names in sorted(large, key=lambda item: item[0].count("."))]
    bare = [Group(g.prefix, {_unwrapped(name): original for name, original in g.names.items()}, own=False) for g in own]
    changed = (
        len(b.names) == len(g.names) and b.names.keys() != g.names.keys() for g, b in zip(own, bare, strict=True)
    )
    return own + [group for group, differs in zip(bare, changed, strict=True) if differs]


def _prefixes(name: str, start: str) -> Iterator[str]:
    if name.startswith(start):
        yield start
        at = len(start)
        for _ in range(_STOREYS):
            if not (at := name.find(".", at) + 1):
                return
            yield name[:at]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def beside(names: Names, expected: Collection[str], tensors: Mapping[str, Tensor]) -> set[str]:
    """Which names in a group are known to be none of the network's: what training keeps at the network's own level.

    What lies within a part of the network never is, for the network would compute with it; nor is a layer of a name
    that says nothing.

    Args:
        names: of the group.
        expected: the network's.
        tensors: of the file.
    """
    parts = {name.partition(".")[0] for name in expected}
    found = {name for name in names if name not in expected and name.rpartition(".")[2] in _COUNTED}
    roots: dict[str, list[str]] = {}
    for name in names:
        if (root := name.partition(".")[0]) not in parts:
            roots.setdefault(root, []).append(name)
    for root, inside in roots.items():
        if _BESIDE.fullmatch(root) or all(_is_no_layer(name, tensors[names[name]]) for name in inside):
            found.update(inside)
    return found | {name for pair in _pairs(names, tensors) for name in pair if name.partition(".")[0] not in parts}


def _is_no_layer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor can be no weight of a layer: counts and sums of metrics, positions in queues, class weights."""
    last = name.rpartition(".")[2]
    return tensor.ndim == 0 or (
        tensor.ndim == 1 and not last.startswith(("weight", "bias", "running_", "gamma", "beta", "scale", "alpha"))
    )


def _pairs(names: Names, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Names of a mean and its std, of one number a channel: by themselves, or alone in a module."""
    inside = Counter(name.rpartition(".")[0] for name in names)
    for mean, std in _PAIRS:
        for name in names:
            above, dot, last = name.rpartition(".")
            other = f"{above}{dot}{std}"
            alone = not above or ("." not in above and inside[above] == 2)
            if last == mean and other in names and alone and _channels(tensors, names[name], names[other]) <= {1, 3}:
                yield name, other


def _channels(tensors: Mapping[str, Tensor], *names: str) -> set[int]:
    return {tensors[name].numel() for name in names}


def normalization_of(
    group: Group, expected: Collection[str], tensors: Mapping[str, Tensor], where: str
) -> tuple[MeanStd | None, set[str]]:
    """The normalisation that the file bundles with a group: beside it, or beside what is around it; and its tensors.

    Args:
        group: of the file.
        expected: the network's own names, which are none of it.
        tensors: of the file.
        where: what to call the file in errors.

    Raises:
        ValueError: there are two that differ, or one for images that are not in [0, 1].
    """
    found: dict[MeanStd, set[str]] = {}
    for around in ("", *_prefixes(group.prefix, "")):
        names = {name.removeprefix(around): name for name in tensors if name.startswith(around)}
        mine = {original for name, original in group.names.items() if name in expected}
        for mean, std in _pairs(names, tensors):
            if mine.isdisjoint(originals := {names[mean], names[std]}):
                found.setdefault((numbers(tensors[names[mean]]), numbers(tensors[names[std]])), set()).update(originals)
    if len(found) > 1:
        raise ValueError(f"{where} bundles two normalisations that differ, and which one counts is not said")
    if not found:
        return None, set()
    ((pair, names),) = found.items()
    if max(pair[0]) > 1 or min(pair[1]) <= 0:
        raise ValueError(
            f"{where} bundles a normalisation for images that are not in [0, 1] ({mean_and_std(pair)}); give the "
            "classifier mean and std in that unit, and load the rest as a state dict"
        )
    return pair, names


def numbers(values: Tensor) -> tuple[float, ...]:
    """A tensor's numbers, to seven figures."""
    return tuple(float(f"{value:.7g}") for value in values.double().flatten().tolist())


def mean_and_std(pair: MeanStd) -> str:
    """A normalisation in words."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in pair)
    return f"mean ({mean}), std ({std})"


def left_aside(tensors: Mapping[str, Tensor], loaded: Collection[str]) -> dict[str, int]:
    """What a network was not given of a file, and of how many tensors it is: the outermost names that hold none of it.

    Args:
        tensors: of the file.
        loaded: keys of what the network was given, or that say no more than it.
    """
    used = {prefix for name in loaded for prefix in ("", *_prefixes(name, ""))}
    roots: dict[str, list[str]] = {}
    for name in tensors:
        if name not in loaded:
            root = next((prefix.rstrip(".") for prefix in _prefixes(name, "") if prefix not in used), name)
            roots.setdefault(root, []).append(name)
    return {root if len(names) > 1 else names[0]: len(names) for root, names in roots.items()}


def equal(a: Names, b: Names, tensors: Mapping[str, Tensor]) -> bool:
    """Whether two groups hold the same numbers under the same names."""
    return a.keys() == b.keys() and all(torch.equal(tensors[a[name]], tensors[b[name]]) for name in a)
