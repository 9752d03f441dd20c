"""Which group of a file's tensors is loaded into a network: the one that has its names and shapes.

found = choose(network, tensors, "checkpoint.pt", key="state_dict_ema")    # or an error that names what to choose
networks_of(tensors)[0].name                                               # where no network was named
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from toughen.errors import Option, UsageError, image_size
from toughen.models.pretrained.files import no_such_key
from toughen.models.pretrained.finetune import find_head
from toughen.models.pretrained.groups import Group, Names, beside, equal, groups_of, normalization_of, prefix_of
from toughen.models.pretrained.key_names import COUNTER, LAYOUTS, OURS, KeyNames, describe_network, identify
from toughen.storage.limits import shown


@dataclass(frozen=True)
class FittedGroup:
    """A group's names under a layout, held against the network's.

    Attributes:
        group: of the file.
        layout: by which its names are ours.
        names: ours -> key in the file.
        expected: the network's tensors, without the head's where that keeps its own weights.
        head: the layer that does.
        theirs: keys in the file of what stands in its place there.
        missing: names that the group lacks.
        unexpected: names that no network like this has, and that are not known to lie beside it.
        other: names of other shapes.
    """

    group: Group
    layout: KeyNames
    names: Names
    expected: Mapping[str, Tensor]
    head: str
    theirs: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return not (self.missing or self.unexpected or self.other)

    @property
    def share(self) -> float:
        """How much of it and the network agrees, in [0, 1]."""
        counted = [key for key in self.expected if not key.endswith(COUNTER)]
        same = len(counted) - len({*self.missing, *self.other})
        return same / max(1, len(counted) + len(self.unexpected))


def choose(
    target: nn.Module, tensors: Mapping[str, Tensor], where: str, *, key: str | None = None, strict: bool = True
) -> FittedGroup:
    """The group that fits a network, without touching the network.

    Raises:
        ValueError: none does, or several that differ.
    """
    expected = target.state_dict()
    head = "" if strict else find_head(target)[0]
    groups = groups_of(tensors, max(1, len(expected) // 4), key)
    if not groups[0].names:
        raise no_such_key(where, key or "", (name.partition(".")[0] for name in tensors if "." in name))
    attempts = [_attempt(group, layout, tensors, expected, head) for group in groups for layout in (OURS, *LAYOUTS)]
    fitting: dict[frozenset[str], FittedGroup] = {}
    for attempt in attempts:
        if attempt.fits:
            fitting.setdefault(frozenset(attempt.names.values()), attempt)
    places = {name: place for place, name in enumerate(tensors)}
    fits = sorted(fitting.values(), key=lambda fit: min(places[name] for name in fit.names.values()))
    # What has the head too, and what the key itself is the beginning of, is nearer to what was asked for.
    for nearer in (
        [fit for fit in fits if not fit.head],
        [fit for fit in fits if key is not None and fit.group.prefix == prefix_of(key)],
    ):
        fits = [fit for fit in fits if fit in nearer] or fits
    for other in fits[1:]:
        if not equal(fits[0].names, other.names, tensors):
            keys = [fit.group.key for fit in fits]
            raise UsageError(
                f"{where} holds {len(keys)} groups of tensors that fit this {type(target).__name__} ({shown(keys)}); "
                "say which is meant with ",
                Option("key", like=fits[0].group.key),
            )
    best = fits[0] if fits else max(attempts, key=lambda attempt: attempt.share)
    if best.fits and strict and key is None and (chain := _chain(best, tensors)):
        best = replace(best, unexpected=chain)
    if not best.fits:
        raise ValueError(_misfit(best, tensors, target, where, groups))
    return best


def _attempt(
    group: Group, layout: KeyNames, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str
) -> FittedGroup:
    names, _ = layout.renamed(group.names)
    inside = f"{head}." if head else ""
    ours = [key for key in expected if key.startswith(inside)] if head else []
    keeps = any(key not in names or tensors[names[key]].shape != expected[key].shape for key in ours)
    theirs = tuple(original for key, original in names.items() if keeps and key.startswith(inside))
    if keeps:
        names = {key: original for key, original in names.items() if not key.startswith(inside)}
        expected = {key: tensor for key, tensor in expected.items() if key not in ours}
    spare = beside(names, expected, tensors)
    taken = {key: original for key, original in names.items() if key in expected}
    return FittedGroup(
        group,
        layout,
        taken,
        expected,
        head if keeps else "",
        theirs,
        tuple(key for key in expected if key not in names and not key.endswith(COUNTER)),
        tuple(original for key, original in names.items() if key not in expected and key not in spare),
        tuple(key for key in taken if tensors[taken[key]].shape != expected[key].shape),
    )


def _chain(best: FittedGroup, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Tensors of other links of a chain (`nn.Sequential`, where names are numbers) that a group is a link of.

    What is as large as the network is no link, but another network, in a list of them.
    """
    _, its = normalization_of(best.group, best.expected, tensors, "")
    links: dict[str, list[str]] = {}
    parts = best.group.prefix.split(".")[:-1]
    for at in (at for at, part in enumerate(parts) if part.isdecimal()):
        around = "".join(f"{part}." for part in parts[:at])
        for name in tensors:
            link = name.removeprefix(around).partition(".")[0]
            if name.startswith(around) and name not in its and link.isdecimal() and link != parts[at]:
                links.setdefault(around + link, []).append(name)
    return tuple(name for names in links.values() if 2 * len(names) < len(best.names) for name in names)


def _misfit(
    attempt: FittedGroup, tensors: Mapping[str, Tensor], target: nn.Module, where: str, groups: list[Group]
) -> str:
    """What the nearest group lacks and has too much of, and what it is like."""
    clauses = []
    if attempt.missing:
        clauses.append(f"it lacks {_listed(attempt.missing)}")
    if attempt.unexpected:
        clauses.append(f"it has {_listed(attempt.unexpected)} too many")
    if attempt.other:
        first = attempt.other[0]
        has, wants = tensors[attempt.names[first]].shape, attempt.expected[first].shape
        listed = _listed([attempt.names[key] for key in attempt.other])
        clauses.append(f"the shape of {listed} differs ({tuple(has)} in place of {tuple(wants)})")
    like = _resemblance(tensors, groups)
    return f"{where} does not fit this {type(target).__name__}: {', '.join(clauses)}; {like}"


def _listed(keys: Sequence[str]) -> str:
    return repr(keys[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


@dataclass(frozen=True)
class FoundNetwork:
    """A network that a group of tensors is of, as `identify` says it.

    Attributes:
        name: that `build` takes.
        options: that `build` takes, `num_classes` and `in_channels` among them.
        share: of the tensors that agree, in (0, 1].
        key: of the group.
    """

    name: str
    options: dict[str, Any]
    share: float
    key: str

    def __str__(self) -> str:
        return describe_network(self.name, self.options)

    def without_classes(self) -> "FoundNetwork":
        """The same for any number of classes."""
        return replace(self, options={key: value for key, value in self.options.items() if key != "num_classes"})


def networks_of(tensors: Mapping[str, Tensor], key: str | None = None) -> list[FoundNetwork]:
    """The networks that a file may hold, whatever wrappers are around them, the likeliest first; of a group the best.

    Args:
        tensors: of the file.
        key: the beginning of the names of those that are meant.
    """
    return _identified(tensors, groups_of(tensors, 4, key))


def _identified(tensors: Mapping[str, Tensor], groups: list[Group]) -> list[FoundNetwork]:
    rows = [
        FoundNetwork(*row, group.key)
        for group in groups
        for row in identify({name: tensors[original] for name, original in group.names.items()})
    ]
    return sorted(rows, key=lambda row: -row.share)


def _resemblance(tensors: Mapping[str, Tensor], groups: list[Group]) -> str:
    rows = _identified(tensors, groups)
    if not rows:
        return "it looks like no network that toughen has by name"
    agree = "" if rows[0].share == 1 else f" ({rows[0].share:.0%} of the tensors agree)"
    return f"it looks like {rows[0]}{agree}"


def told_apart(found: Sequence[FoundNetwork], where: str) -> None:
    """Refuse a file of several networks of which none was named.

    Raises:
        ValueError: groups are of different networks.
    """
    first: dict[str, FoundNetwork] = {}
    for row in found:
        if row.share == found[0].share:
            first.setdefault(row.key, row)
    if len({*map(str, first.values())}) > 1:
        listed = shown(f"{key}: {row}" for key, row in first.items())
        raise UsageError(
            f"{where} holds several networks ({listed}); say which is meant with ", Option("key", like=found[0].key)
        )


def check_channels(what: str, theirs: int, name: str, channels: int) -> None:
    """Refuse weights for images of other channels.

    Args:
        what: the weights.
        theirs: channels of the images that they were trained on.
        name: of the data.
        channels: of its images.

    Raises:
        ValueError: they differ.
    """
    if theirs != channels:
        remedy = ("give ", image_size(like=224), ", which makes all images RGB")
        raise UsageError(
            f"{what} was trained on images of {theirs} channels, and those of {name} have {channels}; ",
            *(remedy if theirs == 3 else (f"give images of {theirs} channels",)),
        )
