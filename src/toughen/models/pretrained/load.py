"""Trained weights from a file into a network, whoever wrote them, with nothing left out in silence.

    model = build("wrn-34-10", num_classes=10)
    print(load_weights(model, "trades.pt"))     # what was done: layout, prefix, normalisation, what was left aside

Of the groups of tensors in the file (see `groups`) the one is loaded that has the network's names and shapes, under its
own names or as `key_names` says; a normalisation that the file bundles with it becomes the classifier's. Either every
tensor finds its place or the network stays as it was, and the error says why.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from toughen.errors import Option, UsageError
from toughen.models.classifier import Classifier, MeanStd, Normalize
from toughen.models.pretrained.choice import choose
from toughen.models.pretrained.files import all_tensors, check_plain, read_tensors
from toughen.models.pretrained.groups import Names, left_aside, mean_and_std, normalization_of, numbers
from toughen.models.pretrained.key_names import OURS, KeyNames
from toughen.storage.limits import shown

A_DICT = "a state dict"
"""What a source is called that is no file."""


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did; as text, one line that says so.

    Attributes:
        source: the file, or "a state dict".
        tensors: how many were loaded.
        layout: whose names they had.
        prefix: what was removed from the beginning of every key; without its last dot, the `key` of these weights.
        ignored: keys of the file that the network was not given, but for the normalisation's and the head's.
        normalization: mean and std that the file bundles, and that the classifier has now.
        head: the layer that kept its own weights, or nothing.
        aside: the same keys as `ignored` by the outermost names that hold none of the network's, with their numbers.
    """

    source: str
    tensors: int
    layout: str
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    normalization: MeanStd | None = None
    head: str = ""
    aside: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.tensors} tensors from {self.source}"]
        if self.layout != OURS.name:
            parts.append(f"named as in {self.layout}")
        if self.prefix:
            parts.append(f"prefix {self.prefix!r} removed")
        if self.normalization:
            parts.append(f"normalisation from the file: {mean_and_std(self.normalization)}")
        if self.head:
            parts.append(f"{self.head} keeps its own weights")
        if self.aside:
            parts.append(f"left aside: {shown(f'{name} ({n} tensors)' if n > 1 else name for name, n in self.aside)}")
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
        source: a file, see `read_tensors`, or a state dict, perhaps in mappings of mappings.
        key: the beginning of the names of the tensors that are meant, such as `state_dict_ema` or `ema.module`, "." for
            none; needed where several groups fit and differ.
        strict: False lets the head be missing or of another size; it then keeps its own weights, as fine-tuning on
            other classes needs. Every other tensor must fit in any case.

    Returns:
        What was done.

    Raises:
        ValueError: as in `read_tensors`; several groups fit, or none is there under the key; a tensor is missing, left
            over, of another shape or not finite (the message names the first of each and the nearest network here); the
            bundled normalisation contradicts the one that the classifier has, or there is no classifier to take it.
    """
    if isinstance(source, Mapping):
        return load_tensors(net, all_tensors(source, A_DICT), A_DICT, key=key, strict=strict)
    return load_tensors(net, read_tensors(source), str(source), key=key, strict=strict)


def load_tensors(
    net: nn.Module, tensors: Mapping[str, Tensor], where: str, *, key: str | None = None, strict: bool = True
) -> Loaded:
    """`load_weights` with the tensors of a file that has been read, which errors call `where`."""
    target = net.net if isinstance(net, Classifier) else net
    attempt = choose(target, tensors, where, key=key, strict=strict)
    group, names = attempt.group, attempt.names
    loaded = {ours: tensors[original] for ours, original in names.items()}
    _check_padding(attempt.layout, target, where)
    check_plain({names[ours]: tensor for ours, tensor in loaded.items()}, where)
    _check_finite(names, tensors, where)
    bundled, its = normalization_of(group, attempt.expected, tensors, where)
    if bundled:
        _take_over(net, bundled, where)
    target.load_state_dict(loaded, strict=False)
    known = {*names.values(), *its, *attempt.theirs}
    return Loaded(
        where,
        len(names),
        attempt.layout.name,
        group.prefix,
        tuple(name for name in tensors if name not in known),
        bundled,
        attempt.head,
        tuple(left_aside(tensors, known).items()),
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
            f"{where} bundles a normalisation ({mean_and_std(found)}), for which the bare network has no place; "
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
        given = (numbers(own.mean), numbers(own.std))
        same_channels = len(given[0]) == len(mean) == len(std)
        if same_channels and torch.allclose(torch.tensor(given), torch.tensor((mean, std)), atol=1e-4):
            return
        has, theirs = mean_and_std(given), (Option("mean"), " and ", Option("std"))
    else:
        has, theirs = "each image by itself", ("its own",)
    raise UsageError(
        f"{where} bundles a normalisation ({mean_and_std(found)}), but the classifier normalises otherwise "
        f"({has}); leave out ",
        *theirs,
    )
