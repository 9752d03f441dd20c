"""What a model is given, before any of its answers is looked at: pixels, shape, type, number of classes.

x = in_range(images, checking)               # in [0, 1], or None where nobody knows how they get there
k = takes(model, x, checking)                # number of logits, or None
y = numbered(labels, k, classes, checking)   # labels from 0, or None
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toughen.evaluation.audit.audit import check_range
from toughen.evaluation.audit.check_result import CheckLog
from toughen.evaluation.audit.preprocessing import undone
from toughen.models.classifier import Classifier
from toughen.models.inputs import REFUSALS, SIDES, first_line


def normalised(model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> nn.Module:
    """The model with a normalisation in front, in the mode in which it is; itself without mean and std.

    Raises:
        ValueError: see `Classifier`.
    """
    if mean is None and std is None:
        return model
    before = Classifier(model, mean=mean, std=std)
    before.training = before.normalize.training = model.training
    return before.to(next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None))


def in_range(x: Tensor, checking: CheckLog) -> Tensor | None:
    """The images in [0, 1], where it is known how they get there."""
    whole = x.float() / 255 if x.dtype == torch.uint8 else x
    found, span = check_range(whole, None), f"{whole.amin().item():.3g}..{whole.amax().item():.3g}"
    if found is None and whole.amax() == whole.amin():
        checking.wrong("EV221", f"All pixels of all images are {whole.amax().item():.3g}.", "look at how they are read")
        return None
    if found is None:
        kind = "uint8, divided by 255" if x.dtype == torch.uint8 else str(x.dtype).removeprefix("torch.")
        checking.fine("pixel range", f"{span} ({kind})")
        return x
    if "divide the images" in found.message:
        checking.wrong("EV221", found.message, "images = images / 255")
        return whole / 255
    if "divided by 255 twice" in found.message:
        text = "images = images * 255" if x.is_floating_point() else "images = (images * 255).to(torch.uint8)"
        checking.wrong("EV221", found.message, text)
        return whole * 255
    origin = undone(whole)
    if origin is None:
        checking.wrong("EV221", found.message, "give the images as uint8, and Classifier(net, mean=..., std=...)")
        return None
    name, pixels, text = origin
    checking.wrong("EV221", f"{found.message} With {name} normalisation taken back they are whole grey levels.", text)
    return pixels


def takes(model: nn.Module, x: Tensor, checking: CheckLog) -> int | None:
    """The number of logits, if the model takes such images and returns logits."""
    devices = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    shape, said = "x".join(map(str, x.shape[1:])), ""
    try:
        logits = model(x[:2])
    except REFUSALS as error:
        said = first_line(error)
        seen = f"The model does not take images of {shape} in {_kind(x)}: {said}"
        if len(devices) > 1:
            checking.wrong("EV226", f"{seen} (parameters on {', '.join(sorted(devices))})", "model.to(device)")
        else:
            checking.wrong("EV226", seen, _instead(model, x))
        return None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x[:2]):
        gave = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        # What a network with several outputs or of another library returns.
        inner = ".logits" if hasattr(logits, "logits") else "[0]" if isinstance(logits, (tuple, list)) else ""
        text = f"return output{inner}" if inner else "return logits (N, K)"
        checking.wrong(
            "EV226", f"The model returns {gave} for {len(x[:2])} images; it must return logits (N, K).", text
        )
        return None
    checking.fine("input", f"{shape}, {_kind(x)} on {x.device}, logits {tuple(logits.shape)[1]}")
    return logits.shape[1]


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _instead(model: nn.Module, x: Tensor) -> str:
    """An input that the model does take, tried on random noise."""

    def runs(tensor: Tensor) -> bool:
        try:
            model(tensor)
        except REFUSALS:
            return False
        return True

    c, h, w = x.shape[1:]
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in model.parameters()):
        return "model.float()"
    if runs(x[:1].double() if x.dtype == torch.float32 else x[:1].float()):
        return "model.float()" if x.dtype == torch.float32 else "images.float()"
    if runs(255 * x[:1]):
        return "it takes images in 0..255: " + _write_255(c)
    for channels in (c, 4 - c) if c in (1, 3) else (c, 3, 1):
        for side in dict.fromkeys((h, *SIDES)):
            tried = (channels, h if side == h else side, w if side == h else side)
            if tried != (c, h, w) and runs(torch.rand(1, *tried, dtype=x.dtype, device=x.device)):
                return f"it takes {'x'.join(map(str, tried))}: bring the images to this size"
    return "look at what its first layer expects"


def _write_255(channels: int) -> str:
    std = ", ".join(["1 / 255"] * channels)
    return f"Classifier(net, mean=({', '.join(['0'] * channels)},), std=({std},))"


def numbered(y: Tensor, k: int, classes: Sequence[str] | None, checking: CheckLog) -> Tensor | None:
    """The labels as the model may know them, or None where they do not fit its logits."""
    low, high = int(y.min()), int(y.max())
    n = None if classes is None else len(classes)
    if high >= k:
        seen = f"Labels go from {low} to {high}, but the model has {k} logits."
        if low >= 1 and high == k and n in (None, k):
            checking.wrong("EV227", f"{seen} They seem to start at 1.", "labels = labels - 1")
            return y - 1
        checking.wrong("EV227", seen, f"give the network a head of {max(high + 1, n or 0)} classes")
        return None
    if n is not None and k < n:
        checking.wrong(
            "EV227", f"The data has {n} classes, but the model {k} logits.", f"give it a head of {n} classes"
        )
        return y
    if n is None or k == n:
        checking.fine("classes", f"{k} logits, labels {low}..{high}" + (f", {n} classes" if n else ""))
    return y
