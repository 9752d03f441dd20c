"""The same classifier with fewer passes over memory: BatchNorm in inference mode is part of the convolution before it.

    quick = fused(model, x)                  # model itself where nothing can be fused

A copy for attacks, which ask for hundreds of passes: a quarter of a small network's time goes into its BatchNorm. What
an attack finds is judged by the model as it was given, so that nothing hangs on the copy but the speed. In training,
where weights move with each step, attacks fold the model itself: see `Folding`.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from toughen.models.refusals import is_models
from toughen.modes import evaluating, running
from toughen.noise import generator

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest: some hundred times what rounding in float32 does."""


def fused(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the model in which convolutions have taken in the BatchNorms after them; all other tensors are shared.

    Which BatchNorm follows which convolution is seen in a pass over `x`.

    Args:
        model: classifier in inference mode.
        x: a few images (n, C, H, W), on which the copy must agree.

    Returns:
        The copy; the model itself where no BatchNorm follows a convolution directly, where there is a hook on one of
        the two, where it cannot be copied, or where the copy does not agree, as that of a model whose convolution is
        also used elsewhere.
    """
    with torch.no_grad():
        expected, pairs = _pairs(model, x)
        if not pairs:
            return model
        twin = _copied(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
        if twin is None:
            return model
        modules = dict(model.named_modules())
        for before, after in pairs:
            conv, norm = modules[before], modules[after]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            twin.set_submodule(before, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
            twin.set_submodule(after, nn.Identity().eval())
        try:
            return twin if agree(twin(x), expected) else model
        except Exception as error:
            # A forward that reads what a BatchNorm holds finds it gone.
            if not is_models(error):
                raise
            return model


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module | None:
    """A copy; None of a model that cannot be copied, whatever its own code, or what it holds, raises then."""
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # noqa: BLE001  # what a stranger's objects raise when they are copied is theirs to choose
        return None


class Folding:
    """The BatchNorms of a model in training, each folded into the convolution before it while an attack runs.

    In inference mode, with parameters frozen, the gradient by the images is the same to rounding, and an attack's pass
    on a WRN-16-4 costs a tenth less. The weights are folded anew for each attack.

    Args:
        pairs: each convolution, and the BatchNorm that it alone feeds.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> None:
        self._pairs = tuple(pairs)

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> "Folding | None":
        """That of a model; None where nothing can be folded.

        Which BatchNorm follows which convolution is seen in a pass over a few images x (n, C, H, W). A pair is left out
        whose convolution also feeds something else, such as a shortcut: then folding would change the logits. That is
        seen on a copy whose BatchNorms are scrambled, for fresh ones change nothing, wherever they stand; a model that
        cannot be copied is not folded.
        """
        twin = _copied(model, {})
        if twin is None:
            return None
        _scramble(twin)
        with evaluating(twin), torch.no_grad():
            expected, names = _pairs(twin, x)
            kept = _sound(twin, names, x, expected)
        return cls(_modules(model, kept)) if kept else None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Run the model folded until the context ends; it must be in inference mode all the while."""
        with ExitStack() as stack:
            for conv, norm in self._pairs:
                mean, var = norm.running_mean, norm.running_var
                assert mean is not None
                assert var is not None
                with torch.no_grad():
                    weight, bias = fuse_conv_bn_weights(
                        conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
                    )
                run = partial(conv._conv_forward, weight=weight.requires_grad_(False), bias=bias.requires_grad_(False))
                stack.enter_context(running(conv, run))
                stack.enter_context(running(norm, _as_it_is))
            yield


def _sound(model: nn.Module, names: list[tuple[str, str]], x: Tensor, expected: Tensor) -> list[tuple[str, str]]:
    """The pairs that can be folded, by halves: a deep network has a hundred, of which few cannot."""
    if not names:
        return []
    with Folding(_modules(model, names)).on():
        found = model(x)
    if agree(found, expected):
        return names
    half = len(names) // 2
    return [*_sound(model, names[:half], x, expected), *_sound(model, names[half:], x, expected)] if half else []


def _modules(model: nn.Module, names: list[tuple[str, str]]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    found = [(model.get_submodule(before), model.get_submodule(after)) for before, after in names]
    return [(c, n) for c, n in found if isinstance(c, nn.Conv2d) and isinstance(n, nn.BatchNorm2d)]


def _scramble(model: nn.Module) -> None:
    """Give every BatchNorm statistics and weights that are not those of a fresh one."""
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            tensors = (module.running_mean, module.running_var, module.weight, module.bias)
            for name, tensor in zip(("mean", "variance", "weight", "bias"), tensors, strict=True):
                if tensor is not None:
                    draws = torch.rand(tensor.shape, generator=generator("scrambled", number, name))
                    tensor.data.copy_(draws + 0.5)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two ways to compute logits agree to what rounding does."""
    return bool((found - expected).abs().amax() <= TOLERANCE * expected.abs().amax())


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
