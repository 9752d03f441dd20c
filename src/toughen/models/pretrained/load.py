"""Trained weights from a file into a network, whoever wrote them, with nothing left out in silence.

    model = build("wrn-34-10", num_classes=10)
    print(load_weights(model, "trades.pt"))     # what was done: layout, prefixes removed, normalisation taken over

Prefixes of wrappers are removed, tensors renamed as `key_names` says, and a normalisation that the file bundles
becomes the classifier's. Either every tensor finds its place or the network stays as it was, and the error says why.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toughen.errors import Option, UsageError
from toughen.models.classifier import Classifier, MeanStd, Normalize
from toughen.models.pretrained.files import pick_state, read_state
from toughen.models.pretrained.finetune import find_head
from toughen.models.pretrained.key_names import (
    COUNTER,
    LAYOUTS,
    OURS,
    KeyNames,
    Names,
    agreement,
    describe_network,
    identify,
)
from toughen.storage.limits import shown

# What wrappers keep beside the network: a copy in MadryLab/robustness' attacker, torch's count of averaged models.
_BESIDE = re.compile(r"(?:.*\.)?attacker\.|n_averaged$")
_WRAPPERS = 8
_PAIRS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did; as text, one line that says so.

    Attributes:
        source: the file, or "a state dict".
        tensors: how many were loaded.
        layout: whose names they had.
        prefix: what was removed from the beginning of every key.
        ignored: keys of the file that no network computes with.
        normalization: mean and std that the file bundles, and that the classifier has now.
        head: the layer that kept its own weights, or nothing.
    """

    source: str
    tensors: int
    layout: str
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    normalization: MeanStd | None = None
    head: str = ""

    def __str__(self) -> str:
        parts = [f"{self.tensors} tensors from {self.source}"]
        if self.layout != OURS.name:
            parts.append(f"named as in {self.layout}")
        if self.prefix:
            parts.append(f"prefix {self.prefix!r} removed")
        if self.normalization:
            parts.append(f"normalisation from the file: {_text(self.normalization)}")
        if self.head:
            parts.append(f"{self.head} keeps its own weights")
        if self.ignored:
            parts.append(f"not used: {', '.join(self.ignored[:3])}{', ...' * (len(self.ignored) > 3)}")
        return "; ".join(parts)


def load_weights(
    net: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    key: str | None = None,
    strict: bool = True,
) -> Loaded:
    """Load trained weights into a network, in place; where anything does not fit, it is left as it was.

    Args:
        net: a `Classifier` or a bare network, of this package or from elsewhere.
        source: a file, see `read_state`, or a state dict.
        key: the entry of the file that holds the weights, where several do.
        strict: False lets the head be missing or of another size; it then keeps its own weights, as fine-tuning on
            other classes needs. Every other tensor must fit in any case.

    Returns:
        What was done.

    Raises:
        ValueError: as in `read_state`; a tensor is missing, left over, of another shape or not finite (the message
            names the first of each and the nearest network here); the bundled normalisation contradicts the one that
            the classifier has, or there is no classifier to take it.
    """
    where = "a state dict" if isinstance(source, Mapping) else str(source)
    state = pick_state(source, where, key) if isinstance(source, Mapping) else read_state(source, key=key)
    target = net.net if isinstance(net, Classifier) else net
    expected = target.state_dict()
    views = _views(state, where)
    attempts = [_Attempt.of(view, layout) for view in views for layout in (OURS, *LAYOUTS)]
    best = max(attempts, key=lambda attempt: agreement(attempt.names, state, expected))

    head = ""
    if not strict:
        name, _ = find_head(target)
        ours = [key for key in expected if key.startswith(f"{name}.")]
        if any(key not in best.names or state[best.names[key]].shape != expected[key].shape for key in ours):
            head = name
            best = replace(best, names={key: value for key, value in best.names.items() if key not in ours})
            expected = {key: value for key, value in expected.items() if key not in ours}
    _check_fit(best, state, expected, target, where, views)
    _check_padding(best.layout, target, where)
    _check_finite(best.names, state, where)
    if best.view.mean_std:
        _take_over(net, best.view.mean_std, where)
    target.load_state_dict({ours: state[original] for ours, original in best.names.items()}, strict=False)
    return Loaded(
        where,
        len(best.names),
        best.layout.name,
        best.view.prefix,
        (*best.view.beside, *best.unused),
        best.view.mean_std,
        head,
    )


def fitted(build: Callable[[], Classifier], state: Mapping[str, Tensor], where: str, name: str = "") -> Classifier:
    """A network with such tensors, all of them; none that they do not fit takes any memory.

    Args:
        build: makes the network, with weights that do not matter.
        state: its state dict.
        where: what to call it in errors.
        name: of the network, for errors.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; as for `build`.
    """
    # A stranger's description may ask for a network of a terabyte.
    with torch.device("meta"):
        expected = build()
    name = name and f" {name}"
    wanted = {key: value.shape for key, value in expected.state_dict().items()}
    found = {key: value.shape for key, value in state.items()}
    # Of a network of the Hub's nothing is known before it is fetched.
    if wanted != found and not isinstance(expected.net, nn.Identity):
        first = next(key for key in (*wanted, *found) if wanted.get(key) != found.get(key))
        shapes = [tuple(shapes[first]) if first in shapes else "missing" for shapes in (found, wanted)]
        raise ValueError(
            f"{where} does not fit its network{name}: {shown([first])} is {shapes[0]} there, {shapes[1]} here"
        )
    model = build()
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())[:200]
        raise ValueError(f"{where} does not fit its network{name}: {reason}") from None
    return model


@dataclass(frozen=True)
class _UnwrappedState:
    """A state dict with the wrappers taken off: new key -> key in the file."""

    names: Names
    prefix: str = ""
    beside: tuple[str, ...] = ()
    mean_std: MeanStd | None = None


@dataclass(frozen=True)
class _Attempt:
    view: _UnwrappedState
    layout: KeyNames
    names: Names
    unused: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, view: _UnwrappedState, layout: KeyNames) -> "_Attempt":
        names, unused = layout.renamed(view.names)
        return cls(view, layout, names, tuple(unused))


def _views(state: Mapping[str, Tensor], where: str) -> list[_UnwrappedState]:
    """The state dict as it is, and after each wrapper that can be taken off."""
    view = _UnwrappedState({name: name for name in state})
    views = [view]
    while len(views) <= _WRAPPERS:
        before = view
        beside = [name for name in view.names if _BESIDE.match(name)]
        if beside:
            names = {name: original for name, original in view.names.items() if name not in beside}
            view = replace(view, names=names, beside=(*view.beside, *(view.names[name] for name in beside)))
        view = _without_mean_std(view, state, where)
        firsts = {name.partition(".")[0] for name in view.names}
        if len(firsts) == 1 and all("." in name for name in view.names):
            first = f"{firsts.pop()}."
            names = {name.removeprefix(first): original for name, original in view.names.items()}
            view = replace(view, names=names, prefix=view.prefix + first)
        if view is before:
            break
        views.append(view)
    return views


def _without_mean_std(view: _UnwrappedState, state: Mapping[str, Tensor], where: str) -> _UnwrappedState:
    """The view without a bundled mean and std of one number a channel."""
    for mean_name, std_name in _PAIRS:
        for name, original in view.names.items():
            above, dot, last = name.rpartition(".")
            other = view.names.get(f"{above}{dot}{std_name}")
            if last != mean_name or other is None:
                continue
            if not {state[original].numel(), state[other].numel()} <= {1, 3}:
                continue
            found = (_numbers(state[original]), _numbers(state[other]))
            if view.mean_std not in (None, found):
                raise ValueError(f"{where} bundles two normalisations that differ, and which one counts is not said")
            if max(found[0]) > 1 or min(found[1]) <= 0:
                raise ValueError(
                    f"{where} bundles a normalisation for images that are not in [0, 1] ({_text(found)}); give the "
                    "classifier mean and std in that unit, and load the rest as a state dict"
                )
            names = {key: value for key, value in view.names.items() if value not in (original, other)}
            return replace(view, names=names, mean_std=found)
    return view


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values.double().flatten().tolist())


def _text(mean_std: MeanStd) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in mean_std)
    return f"mean ({mean}), std ({std})"


def _check_fit(
    attempt: _Attempt,
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    target: nn.Module,
    where: str,
    views: list[_UnwrappedState],
) -> None:
    missing = [key for key in expected if key not in attempt.names and not key.endswith(COUNTER)]
    unexpected = [original for ours, original in attempt.names.items() if ours not in expected]
    other = [k for k, v in expected.items() if k in attempt.names and state[attempt.names[k]].shape != v.shape]
    if not (missing or unexpected or other):
        return
    clauses = []
    if missing:
        clauses.append(f"it lacks {_listed(missing)}")
    if unexpected:
        clauses.append(f"it has {_listed(unexpected)} too many")
    if other:
        has, wants = state[attempt.names[other[0]]].shape, expected[other[0]].shape
        listed = _listed([attempt.names[key] for key in other])
        clauses.append(f"the shape of {listed} differs ({tuple(has)} in place of {tuple(wants)})")
    raise ValueError(
        f"{where} does not fit this {type(target).__name__}: {', '.join(clauses)}; {_resemblance(state, views)}"
    )


def _listed(keys: list[str]) -> str:
    return repr(keys[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def networks_of(state: Mapping[str, Tensor]) -> list[tuple[str, dict[str, Any], float]]:
    """What `identify` says of a state dict, whatever wrappers are around it."""
    return _identified(state, _views(state, "a state dict"))


def _identified(state: Mapping[str, Tensor], views: list[_UnwrappedState]) -> list[tuple[str, dict[str, Any], float]]:
    rows = [row for view in views for row in identify({k: state[original] for k, original in view.names.items()})]
    return sorted(rows, key=lambda row: -row[2])


def _resemblance(state: Mapping[str, Tensor], views: list[_UnwrappedState]) -> str:
    rows = _identified(state, views)
    if not rows:
        return "it looks like no network that toughen has by name"
    name, options, share = rows[0]
    agree = "" if share == 1 else f" ({share:.0%} of the tensors agree)"
    return f"it looks like {describe_network(name, options)}{agree}"


def _check_padding(layout: KeyNames, target: nn.Module, where: str) -> None:
    """Shapes do not tell how a wide ResNet pads, its code does."""
    wanted, has = layout.options.get("padding"), getattr(target, "padding", None)
    if wanted and has and wanted != has:
        raise ValueError(
            f"{where} is named as in {layout.name}, whose wide ResNet pads strided convolutions at "
            f"{'their end' if wanted == 'end' else 'both sides'}; build the network with padding: {wanted}"
        )


def _check_finite(names: Names, state: Mapping[str, Tensor], where: str) -> None:
    for original in names.values():
        if not torch.isfinite(state[original]).all():
            raise ValueError(
                f"{where} is of no use: {original!r} holds NaN or infinity; give weights from before training "
                "diverged, or fetch the file again"
            )


def _take_over(net: nn.Module, found: MeanStd, where: str) -> None:
    """Make a bundled normalisation the classifier's."""
    if not isinstance(net, Classifier):
        raise ValueError(
            f"{where} bundles a normalisation ({_text(found)}), for which the bare network has no place; "
            "load it into toughen.Classifier(net)"
        )
    own = net.normalize
    # One number in a file stands for every channel.
    channels = own.mean.numel() if isinstance(own, Normalize) else net.in_channels or 1
    mean, std = (values * channels if len(values) == 1 else values for values in found)
    if isinstance(own, nn.Identity):
        like = next(net.net.parameters())
        net.normalize = Normalize(mean, std).to(like)
        return
    if isinstance(own, Normalize):
        given = (_numbers(own.mean), _numbers(own.std))
        same_channels = len(given[0]) == len(mean) == len(std)
        if same_channels and torch.allclose(torch.tensor(given), torch.tensor((mean, std)), atol=1e-4):
            return
        has, theirs = _text(given), (Option("mean"), " and ", Option("std"))
    else:
        has, theirs = "each image by itself", ("its own",)
    raise UsageError(
        f"{where} bundles a normalisation ({_text(found)}), but the classifier normalises otherwise "
        f"({has}); leave out ",
        *theirs,
    )
