"""The audit: can a robust accuracy be believed? Looks at the model, the images and whether attacks get through.

Gradient masking: a gradient that is NaN, zero or unrelated to the output makes every attack that follows it look weak
and the model look robust; wrong preprocessing, labels or modes make the figure one of something else. The audit looks
for these at little cost, tries the remedy where one is known, and says what it saw.

    found = audit(model, x, y, threat=Linf(8 / 255))
    found = found.after(evaluation.outcomes)                 # what shows only beside an evaluation
    found.unreliable, found.findings, found.not_checked

Sources: Carlini et al. 2019, "On evaluating adversarial robustness", section 3 and 4; Athalye et al. 2018, section 3.1;
Pintor et al. 2022, "Indicators of attack failure"; the flags of AutoAttack.
"""

import torch
from torch import Tensor, nn

from toughen.evaluation.audit.attack_checks import AttackChecks
from toughen.evaluation.audit.findings import Audit, Finding, advised, finding
from toughen.evaluation.audit.observation import WatchedModel, as_given, undisturbed
from toughen.models.batched import Batched
from toughen.models.cost import counted
from toughen.models.inputs import as_labels, check_batch, out_of_unit
from toughen.models.prepared import ball_of, prepare
from toughen.models.refusals import naming_theirs
from toughen.modes import float32
from toughen.noise import Stream
from toughen.threat import Threat, as_threat

EXAMPLES = 128
"""How many are looked at; in a check, unless more are asked for."""


def check_range(x: Tensor, threat: Threat | None) -> Finding | None:
    """EV221 where images or radius are not in the units of [0, 1] (see `inputs.out_of_unit`)."""
    found = out_of_unit(x, threat)
    return None if found is None else finding("EV221", seen=found[0], remedy=found[1])


def audit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat | str,
    seed: int = 0,
    batch_size: int = 256,
    index: Tensor | None = None,
) -> Audit:
    """Look for reasons why the robust accuracy of a model would not be believed.

    The first 128 examples are looked at, with at most 100 forward and backward passes each. The model is looked at in
    the mode in which it is given, then in inference mode; modes, buffers, gradients and the global random state are
    left as found.

    Args:
        model: classifier of images in [0, 1], (N, C, H, W) -> logits (N, K).
        x: images (N, C, H, W), floats or uint8. Floats outside [0, 1] are a finding, and then nothing else is checked.
        y: classes (N,).
        threat: the ball, with one radius for all or one per example; or a text like linf:8/255.
        seed: of the random draws.
        batch_size: examples per pass, at least 1.
        index: example ids (N,). Default: 0 to N - 1.

    Returns:
        The findings; none for a sound model.
    """
    threat = as_threat(threat)
    check_batch(x)
    y, ids = as_labels(y, len(x)), (torch.arange(len(x)) if index is None else torch.as_tensor(index).cpu())[:EXAMPLES]
    n, out_of_range = len(ids), check_range(x, threat)
    if out_of_range is not None or not n:
        found = () if out_of_range is None else (out_of_range,)
        left = "Nothing else was checked, because there are no images in [0, 1]."
        return Audit(found, (left,), n, 0, 0, tuple(ids.tolist()), (), ())
    prepared = prepare(model, x[:n], y[:n], batch_size)
    model, device, images = prepared.model.model, prepared.device, prepared.images(x[:n])
    with undisturbed(device, seed), float32(device), torch.no_grad(), naming_theirs():
        given = as_given(model, images[:batch_size])
        with prepared.ready(), counted(model) as passes:
            watched = WatchedModel(model)
            pieces = Batched(watched, batch_size)
            checks = AttackChecks(
                model=pieces,
                watched=watched,
                x=images,
                y=y[:n].to(device),
                threat=ball_of(threat, torch.arange(n), device),
                ids=ids,
                noise=Stream(("audit", seed), rows=ids),
                passes=passes,
                spent=int(given is not None),
            )
            checks.run(given)
    return Audit(
        findings=advised(checks.findings),
        not_checked=tuple(checks.not_checked),
        examples=n,
        forwards=passes.example_forwards + (0 if given is None else len(given.logits)),
        backwards=passes.example_backwards,
        ids=tuple(ids.tolist()),
        standing_pgd=tuple(ids[checks.unbroken_by_pgd.cpu()].tolist()),
        standing=tuple(ids[checks.unbroken.cpu()].tolist()),
    )
