"""The same classifier with fewer passes over memory: BatchNorm in inference mode is part of the convolution before it.

    quick = fused(model, x)                  # model itself where nothing can be fused

A copy for attacks, which ask for hundreds of passes: a quarter of a small network's time goes into its BatchNorm. What
an attack finds is judged by the model as it was given, so that nothing hangs on the copy but the speed.
"""

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest: some hundred times what rounding in float32 does."""


def fused(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the model in which convolutions have taken in the BatchNorms after them; all other tensors are shared.

    Which BatchNorm follows which convolution is seen in a pass over `x`.

    Args:
        model: classifier in inference mode.
        x: a few images (n, C, H, W), on which the copy must agree.

    Returns:
        The copy; the model itself where no BatchNorm follows a convolution directly, where somebody listens to one of
        the two, where it cannot be copied, or where the copy does not agree, as that of a model whose convolution is
        also used elsewhere.
    """
    with torch.no_grad():
        expected, pairs = _pairs(model, x)
        if not pairs:
            return model
        try:
            twin = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
        except (TypeError, RuntimeError, copy.Error):
            return model
        modules = dict(model.named_modules())
        for before, after in pairs:
            conv, norm = modules[before], modules[after]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            twin.set_submodule(before, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
            twin.set_submodule(after, nn.Identity())
        found = twin(x)
        agrees = (found - expected).abs().amax() <= TOLERANCE * expected.abs().amax()
    return twin.eval() if bool(agrees) else model


def _pairs(model: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[str, str]]]:
    """The logits of `x`, and the names of each convolution and BatchNorm of which the one feeds the other."""
    names = {module: name for name, module in model.named_modules()}
    calls: Counter[nn.Module] = Counter()
    # Kept alive: a tensor that is freed leaves its place in memory, and so its identity, to another.
    made: list[tuple[Tensor, nn.Module]] = []
    fed: list[tuple[nn.Module, nn.Module]] = []

    def convolved(module: nn.Module, given: object, out: Tensor) -> None:
        calls[module] += 1
        made.append((out, module))

    def normalised(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        fed.extend((conv, module) for out, conv in made if out is given[0])

    free = [module for module in names if not (module._forward_hooks or module._forward_pre_hooks)]
    handles = [module.register_forward_hook(convolved) for module in free if type(module) is nn.Conv2d]
    norms = [module for module in free if type(module) is nn.BatchNorm2d and module.running_var is not None]
    handles += [module.register_forward_pre_hook(normalised) for module in norms]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    once = [(names[conv], names[norm]) for conv, norm in fed if calls[conv] == calls[norm] == 1]
    return logits, once
