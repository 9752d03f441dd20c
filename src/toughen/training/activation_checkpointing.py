"""Activation checkpointing: what a block computes is forgotten after the forward pass and computed again backward.

    with recomputed(blocks(model)):
        loss(model(x)).backward()              # the same bits, a third more work, memory of the blocks' inputs alone

A context and not a wrapper, so that modules keep their names, and copies of the model know nothing of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from toughen.modes import running


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a network: what stands in a row (`nn.Sequential`) and has parts itself, the outermost of them.

    These are the residual blocks of our networks, torchvision's and timm's, and timm's transformer blocks. A network
    of single layers has none.
    """
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(model, nn.Sequential) and not isinstance(child, nn.Sequential) and any(child.children()):
            found.append(child)
        else:
            found += blocks(child)
    return found


@contextmanager
def recomputed(chosen: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute these blocks' activations in backward passes, until the context ends.

    BatchNorm's running statistics move in the forward pass alone. Dropout draws the same numbers again.

    Args:
        chosen: modules, none within another.
    """
    with ExitStack() as stack:
        for block in chosen:
            contexts = partial(_contexts, block)
            stack.enter_context(
                running(block, partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts))
            )
        yield


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward pass, and of its repetition."""
    return nullcontext(), _untracked(block)


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Momentum 0, and not an end to tracking: a repetition must save what the forward pass saved, for checks."""
    found = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [module.momentum for module in found]
    for module in found:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(found, momenta, strict=True):
            module.momentum = momentum
            if module.num_batches_tracked is not None:
                module.num_batches_tracked.sub_(1)
