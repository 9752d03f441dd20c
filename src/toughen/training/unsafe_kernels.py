"""A fault of torch on the CPU that writes outside of its memory, and how a training run keeps clear of it.

Where images lie with channels last in memory, the gradient of the weights of a 1x1 convolution with a stride, like
those in a ResNet's shortcuts, is computed in a buffer that is too small if the layer has fewer input channels than the
kernel takes at once. The process aborts, crashes, or goes on with wrong numbers. Seen with torch 2.13.0 (oneDNN 3.12.0)
on a processor with AVX2 and without AVX-512, for 1 to 7 channels; with AVX-512 the kernel takes 16 at once, and up to
15 are reported to be wrong. oneDNN's issue 6035 tells the cause and is open. Forward passes and gradients by the images
are sound, so evaluation, attacks and labelling may lay images out as they like; so are float64, groups, larger kernels,
stride 1, and GPUs.

Two of the ways in `training.acceleration` lead there: channels last, and compiled graphs, in which torch's compiler
lays out so every convolution on a CPU. To try them in a process of its own would not do, for what came through by luck
would be taken. `make bench-heap` looks at all ways under malloc's own checks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from toughen.devices import own_draws
from toughen.modes import evaluating

CHANNELS = 16
"""Input channels from which the gradient is sound on every processor."""

REASON = (
    f"on a CPU torch writes outside of its memory with channels last and a strided 1x1 convolution of fewer than "
    f"{CHANNELS} channels, which this network has"
)


def narrow(model: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a run must do without channels last and graphs; then weights are put into the usual order, in place.

    Convolutions are seen where torch computes them, in a pass of two black images in inference mode, so that it does
    not matter which module, if any, they come from. The values of weights and the random state stay as they are.

    Args:
        model: on its device.
        shape: (C, H, W) of the images.
        device: of the model; on a GPU nothing is the matter.
        dtype: in which it computes.

    Raises:
        ValueError: the network lays its images out with channels last itself, so that any way would lead there.
    """
    # A single small image would be computed by other kernels.
    x = torch.zeros(2, *shape, device=device, dtype=dtype)
    if device.type != "cpu" or not _looked(model, x).found:
        return False
    for parameter in model.parameters():
        # Not `contiguous`: weights of 1x1 are that in any order, and keep strides that lead to the fault.
        parameter.data = torch.empty_like(parameter, memory_format=torch.contiguous_format).copy_(parameter.data)
    if _looked(model, x).last:
        raise ValueError(f"{REASON} and lays out itself; take the memory format out of its code, or train it on a GPU")
    return True


def _looked(model: nn.Module, x: Tensor) -> "_Looking":
    with own_draws(), evaluating(model), torch.no_grad(), _Looking() as looking:
        model(x)
    return looking


class _Looking(TorchDispatchMode):
    """Sees whether a convolution of the kind is computed, and whether one is with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.found = self.last = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            weight, stride, groups = args[1], args[3], args[8]
            of_kind = weight.ndim == 4 and weight[0, 0].numel() == 1 and max(stride) > 1 and groups == 1
            if of_kind and weight.shape[1] < CHANNELS and weight.dtype != torch.float64:
                self.found = True
                # One pixel's channels lie next to each other in any order.
                self.last |= out.stride(1) == 1 and out[0, 0].numel() > 1
        return out
