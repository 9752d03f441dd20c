"""The check of a model: within a minute, what is right and what is wrong with how it is fed. No attack is run.

    found = check(model, images, labels, classes=("plane", "car", ...))
    found.fine                               # True if nothing is wrong
    for item in found.items:
        print(item.what, item.verdict, item.evidence, item.remedy)

It is the part of the audit that needs no threat model, and has a verdict on everything that it looked at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toughen.devices import has_float64
from toughen.evaluation.audit import statistics
from toughen.evaluation.audit.audit import EXAMPLES, check_range
from toughen.evaluation.audit.check_result import CheckItem, CheckLog, ModelCheck, Verdict
from toughen.evaluation.audit.clean_checks import CleanChecks
from toughen.evaluation.audit.findings import advised, finding
from toughen.evaluation.audit.observation import LogitsAsGiven, WatchedModel, as_given, undisturbed
from toughen.evaluation.audit.preprocessing import MISMATCHED, undone
from toughen.models.adapted import FOUND_IN, AdaptedModel, NoLogits, adapt, check_logits
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.models.inputs import as_input, as_labels, check_batch, placement
from toughen.models.prepared import inference, supports_channels_last
from toughen.models.refusals import REFUSALS, described, is_models, naming_theirs, shapes_to_try
from toughen.modes import float32, plain
from toughen.noise import Stream, generator
from toughen.outcomes import interval

__all__ = ["EXAMPLES", "CheckItem", "ModelCheck", "check", "choose_images"]


def choose_images(n: int, limit: int = EXAMPLES) -> Tensor:
    """Which of n images are looked at: `limit` of them (or all), drawn the same way each time, ascending.

    Not the first ones, which in a folder are of one class.
    """
    return torch.randperm(n, generator=generator("check", n))[:limit].sort().values


def check(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    classes: Sequence[str] | None = None,
    batch_size: int = 64,
    limit: int = EXAMPLES,
) -> ModelCheck:
    """Find what is wrong with how a model is fed, at 40 passes of 128 images at most; the model is left as it was.

    Looked at: the range of the pixels; whether the model takes the images; logits against classes; train mode left on;
    randomness; whether an example's output depends on its batch; NaN, constant outputs, probabilities for logits;
    normalisation missing, doubled or another; red and blue exchanged; the order of the labels; accuracy against
    guessing; input gradients.

    Args:
        model: classifier of images in [0, 1], (N, C, H, W) -> logits (N, K), in any mode.
        images: (N, C, H, W), uint8, or floats which should be in [0, 1].
        labels: classes (N,), whole numbers.
        classes: the classes' names in the order of the labels, which tell how many logits there should be and whether
            the model knows the classes in the order of their names.
        batch_size: images in a pass, at least 1.
        limit: how many images are looked at, at least 1; more are drawn from (see `choose_images`).

    Returns:
        An item for each thing looked at, or several where several things are wrong.

    Raises:
        ValueError: images or labels that are none, or a number below 1.
    """
    labels = _checked(images, labels, batch_size, limit)
    rows = choose_images(len(images), limit)
    x, y = images[rows.to(images.device)], labels[rows.to(labels.device)].cpu()
    log, passes, stranger = CheckLog(), Passes(), adapt(plain(model))
    x = _in_range(x, log)
    if x is None:
        log.rest("the images are not in [0, 1]")
        return log.done(len(rows), passes)
    device, dtype = placement(stranger, x)
    x = as_input(x, device, dtype)
    with undisturbed(device, 0), torch.no_grad(), inference(stranger, device, fast=False):
        k = _takes(stranger, x, log)
        # Not by `counted`, which relies on what is found out here: that the model returns logits.
        passes.example_forwards += min(len(x), 2)
        y = None if k is None else _numbered(y, k, classes, log)
    if k is None or y is None:
        log.rest("the model does not take the images" if k is None else "labels and logits do not fit")
        return log.done(len(rows), passes)
    model = stranger if stranger.needed else stranger.model
    fast = supports_channels_last(model, x[:1], device)
    with undisturbed(device, 0), counted(model, passes), torch.no_grad(), float32(device):
        given = _given(model, x[:batch_size], log)
    with (
        undisturbed(device, 0),
        torch.no_grad(),
        inference(model, device, fast=fast),
        counted(model, passes),
        naming_theirs(),
    ):
        watched = WatchedModel(model)
        checks = CleanChecks(
            model=Batched(watched, batch_size),
            watched=watched,
            x=x,
            y=y.to(device),
            ids=rows,
            noise=Stream(("check", 0), rows=rows),
            passes=passes,
            names=classes,
        )
        _run_checks(checks, given, log)
    return log.done(len(rows), passes)


def _checked(images: Tensor, labels: Tensor, batch_size: int, limit: int) -> Tensor:
    check_batch(images)
    if not images.numel():
        raise ValueError(f"images are of shape {tuple(images.shape)}; give at least one")
    labels = as_labels(labels, len(images))
    if bool((labels < 0).any()):
        raise ValueError(f"labels run from {int(labels.min())}; give each image its class, a whole number from 0")
    if batch_size < 1 or limit < 1:
        raise ValueError(f"batch_size is {batch_size} and limit {limit}; both must be at least 1")
    return labels


def _in_range(x: Tensor, log: CheckLog) -> Tensor | None:
    """The images in [0, 1], where it is known how they get there."""
    whole = x.float() / 255 if x.dtype == torch.uint8 else x
    found, span = check_range(whole, None), f"{whole.amin().item():.3g}..{whole.amax().item():.3g}"
    if found is None and whole.amax() == whole.amin():
        log.wrong("EV221", f"All pixels of all images are {whole.amax().item():.3g}.", "look at how they are read")
        return None
    if found is None:
        kind = "uint8, divided by 255" if x.dtype == torch.uint8 else str(x.dtype).removeprefix("torch.")
        log.fine("pixel range", f"{span} ({kind})")
        return x
    if "divide the images" in found.message:
        log.wrong("EV221", found.message, "images = images / 255")
        return whole / 255
    if "divided by 255 twice" in found.message:
        text = "images = images * 255" if x.is_floating_point() else "images = (images * 255).to(torch.uint8)"
        log.wrong("EV221", found.message, text)
        return whole * 255
    origin = undone(whole)
    if origin is None:
        log.wrong("EV221", found.message, "give the images as uint8, and Classifier(net, mean=..., std=...)")
        return None
    name, pixels, text = origin
    log.wrong("EV221", f"{found.message} With {name} normalisation taken back they are whole grey levels.", text)
    return pixels


def _takes(model: AdaptedModel, x: Tensor, log: CheckLog) -> int | None:
    """The number of logits, if the model takes such images and returns logits."""
    devices = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    shape = "x".join(map(str, x.shape[1:]))
    try:
        logits = model(x[:2])
        check_logits(logits, len(x[:2]))
    except NoLogits as error:
        log.wrong("EV226", f"{str(error)[:1].upper()}{str(error)[1:]}.", "return logits (N, K)")
        return None
    except Exception as error:
        if not is_models(error):
            raise
        seen = f"The model does not take images of {shape} in {_type_of(x)}: {described(error)}"
        if len(devices) > 1:
            log.wrong("EV226", f"{seen} (parameters on {', '.join(sorted(devices))})", "model.to(device)")
        else:
            log.wrong("EV226", seen, _instead(model, x) if isinstance(error, REFUSALS) else "mend that line of it")
        return None
    found = "" if model.returned == "tensor" else f" (in {FOUND_IN[model.returned]})"
    log.fine("input", f"{shape}, {_type_of(x)} on {x.device}, logits {tuple(logits.shape)[1]}{found}")
    return logits.shape[1]


def _type_of(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _instead(model: nn.Module, x: Tensor) -> str:
    """An input that the model does take, tried on random noise."""

    def runs(tensor: Tensor) -> bool:
        try:
            model(tensor)
        except Exception as error:
            if not is_models(error):
                raise
            return False
        return True

    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in model.parameters()):
        return "model.float()"
    # A device without float64 holds no model in it.
    if has_float64(x.device) and runs(x[:1].double() if x.dtype == torch.float32 else x[:1].float()):
        return "model.float()" if x.dtype == torch.float32 else "images.float()"
    if runs(255 * x[:1]):
        zeros, std = ", ".join(["0"] * x.shape[1]), ", ".join(["1 / 255"] * x.shape[1])
        return f"it takes images in 0..255: Classifier(net, mean=({zeros},), std=({std},))"
    for tried in shapes_to_try(model, x.shape[1:]):
        if runs(torch.rand(1, *tried, dtype=x.dtype, device=x.device)):
            return f"it takes {'x'.join(map(str, tried))}: bring the images to this size"
    return "look at what its first layer expects"


def _numbered(y: Tensor, k: int, classes: Sequence[str] | None, log: CheckLog) -> Tensor | None:
    """The labels as the model may know them, or None where they do not fit its logits."""
    low, high = int(y.min()), int(y.max())
    n = None if classes is None else len(classes)
    if high >= k:
        seen = f"Labels go from {low} to {high}, but the model has {k} logits."
        if low >= 1 and high == k and n in (None, k):
            log.wrong("EV227", f"{seen} They seem to start at 1.", "labels = labels - 1")
            return y - 1
        log.wrong("EV227", seen, f"give the network a head of {max(high + 1, n or 0)} classes")
        return None
    if n is not None and k < n:
        log.wrong("EV227", f"The data has {n} classes, but the model {k} logits.", f"give it a head of {n} classes")
        return y
    if n is None or k == n:
        log.fine("classes", f"{k} logits, labels {low}..{high}" + (f", {n} classes" if n else ""))
    return y


def _given(model: nn.Module, x: Tensor, log: CheckLog) -> LogitsAsGiven | None:
    try:
        return as_given(model, x)
    except Exception as error:
        if not is_models(error):
            raise
        seen = f"In training mode, in which it was given, the model fails: {described(error)}"
        log.wrong("EV211", seen, "model.eval()")
        return None


def _run_checks(checks: CleanChecks, given: LogitsAsGiven | None, log: CheckLog) -> None:
    checks.check_outputs(given)
    checks.check_preprocessing()
    badly_fed = checks.has(("EV222",))
    uninformative = not badly_fed and (checks.has(("EV209",)) or not checks.logits.isfinite().all(1).any())
    if not uninformative and not badly_fed:
        rows = checks.as_is.right.nonzero().squeeze(1)
        checks.check_gradients(rows if len(rows) else torch.arange(checks.n, device=checks.x.device))
    checks.note_changes()
    for found in advised(checks.findings):
        if not (found.code == "EV211" and log.has("train mode")):
            log.found(found)
    if not log.has("classes"):
        _unused(checks, log)
    seen: dict[str, tuple[Verdict, str]] = {
        "train mode": _train_mode(given),
        "randomness": ("fine", f"two passes over {checks.n} images are the same"),
        "batch": _batch_dependence(checks),
        "output": ("fine", "logits, finite"),
    }
    if not uninformative:
        seen |= {"normalisation": _normalisation(checks), "channel order": _channels(checks)}
        seen |= {"label order": _order(checks)}
        _accuracy(checks, log)
        if not badly_fed:
            seen["gradients"] = "fine", f"finite, not zero, and the slope of the output on {checks.n} images"
    log.items += [CheckItem(what, *verdict) for what, verdict in seen.items() if not log.has(what)]
    log.rest("feed the images as they should be first" if badly_fed else "the output says nothing of the images")


def _unused(checks: CleanChecks, log: CheckLog) -> None:
    """More logits than classes: fine as a class for foreign images, wrong as a head for other data."""
    k, n = checks.logits.shape[1], len(checks.names or ())
    outside = int((checks.best.logits.argmax(1) >= n).sum())
    seen = f"The model has {k} logits, the data {n} classes; {outside} of {checks.n} predictions are none of these."
    if outside > 0.1 * checks.n:
        log.wrong("EV227", seen, f"give it a head of {n} classes, or pick their logits: logits[:, indices]")
    else:
        log.fine("classes", seen)


def _train_mode(given: LogitsAsGiven | None) -> tuple[Verdict, str]:
    if given is None:
        return "fine", "all modules in inference mode"
    return "fine", f"{len(given.names)} modules are in training mode, which does not change the output"


def _batch_dependence(checks: CleanChecks) -> tuple[Verdict, str]:
    if checks.n < 2:
        return "not checked", "it takes two images"
    if checks.has(("EV212",)):
        return "not checked", "the output is random"
    return "fine", "the same outputs in another batch"


def _normalisation(checks: CleanChecks) -> tuple[Verdict, str]:
    """Whether the way in which the images are fed was confirmed: by the first BatchNorm, or by the labels."""
    as_is, tried = checks.as_is, len(checks.trials)
    as_fed = f"accuracy {as_is.accuracy:.1%} as fed"
    if tried:
        best = max(checks.trials, key=lambda trial: trial.accuracy)
        assert best.how is not None
        as_fed += f", at most {best.accuracy:.1%} under {tried} other preprocessings ({best.how.change})"
    if as_is.mismatch is not None and as_is.mismatch <= MISMATCHED:
        return (
            "fine",
            f"{as_fed}; the first BatchNorm meets what it was trained on (divergence {as_is.mismatch:.2g})",
        )
    if _guesses(checks):
        return "not checked", f"{as_fed}, which {checks.n} images do not tell from guessing"
    if as_is.mismatch is not None:
        seen = f"the first BatchNorm is {as_is.mismatch:.2g} away from its training, and nothing tried is far nearer"
        return "not checked", f"{as_fed}; {seen}"
    return "fine", as_fed


def _channels(checks: CleanChecks) -> tuple[Verdict, str]:
    swapped = checks.swapped
    if checks.x.shape[1] != 3:
        return "not checked", f"the images have {checks.x.shape[1]} channel(s)"
    if swapped is None:
        same = bool((checks.x[:, 0] == checks.x[:, 2]).all())
        if same:
            return "not checked", "the images are grey"
        return "fine", "every image is classified correctly as fed"
    before = checks.unswapped
    seen = f"accuracy {before.accuracy:.1%} as fed, {swapped.accuracy:.1%} with red and blue exchanged"
    if _guesses(checks):
        return "not checked", seen
    sure = statistics.better(before.right, swapped.right, 0, 0.05) or before.loss < swapped.loss
    return ("fine" if sure else "not checked"), seen


def _order(checks: CleanChecks) -> tuple[Verdict, str]:
    k = checks.logits.shape[1]
    if _guesses(checks):
        return "not checked", f"no order of {k} classes stands out on {checks.n} images"
    return "fine", f"no other order of {k} classes fits the predictions far better"


def _guesses(checks: CleanChecks) -> bool:
    """Whether the accuracy, as well as it can be explained, may be that of always giving the commonest label."""
    right = int(checks.best.right.sum())
    return right == 0 or interval(right, checks.n, 0.99)[0] <= _chance(checks)


def _chance(checks: CleanChecks) -> float:
    counts = checks.y.bincount()
    return max(int(counts.max()) / checks.n, 1 / checks.logits.shape[1])


def _accuracy(checks: CleanChecks, log: CheckLog) -> None:
    as_is, best, chance = checks.as_is, checks.best, _chance(checks)
    seen = f"{as_is.accuracy:.1%} on {checks.n} images"
    if best is not as_is:
        log.fine("accuracy", f"{seen} as fed, {best.accuracy:.1%} with what is wrong put right")
    elif not _guesses(checks):
        log.fine("accuracy", f"{seen} ({chance:.1%} by always giving the commonest label)")
    elif checks.has(("EV212",)):
        log.unknown("accuracy", f"{seen}: the output is random")
    elif interval(int(as_is.right.sum()), checks.n, 0.99)[1] < chance + 0.2 * (1 - chance):
        log.found(*advised([finding("EV229", accuracy=as_is.accuracy, examples=checks.n, chance=chance)]))
    else:
        log.unknown("accuracy", f"{seen}: too few to tell from guessing")
