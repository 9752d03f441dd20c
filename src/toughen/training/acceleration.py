"""The ways in which a run may compute faster, and how they are chosen: by a rule, or by measuring.

    ways = by_rule(recipe, device)                       # on the CPU folded alone, on a GPU most of them
    ways, said = by_measuring(recipe, model, images)     # what was fastest here, by more than 5 %

| way | by rule | what it changes |
| --- | --- | --- |
| bf16 autocast | GPUs that compute in it | mixed precision: convolutions and products, the attack's too, in 8 bits |
| channels_last | GPUs | nothing but the order of sums |
| compiled graphs | GPUs, for 1,000 batches and more, if a step compiles | fused kernels: the order of sums |
| TF32 | GPUs | products of float32 numbers in 10 bits of precision |
| folded BatchNorm | where nothing is compiled | rounding, in attacks in inference mode: see `folding.Folding` |

GPUs are here those by CUDA. On Apple's (mps) and Intel's (xpu) nobody has seen these ways yet: there a run computes in
float32 and folds BatchNorm, but for bf16 where a recipe asks for it, and a note says so.

On a CPU some networks must do without channels_last and graphs, for torch would write outside of its memory: see
`training.unsafe_kernels`.

What bf16 changes, measured on 64 CIFAR-10 images at initial weights: the loss by less than 0.05 %; the gradient by the
weights keeps a cosine of 0.94 (PreActResNet-18), 0.98 (WRN-16-4) or 0.9998 (a network without BatchNorm) with that of
float32; of the input gradient's signs, which are what an attack takes, 87, 90 and 98 % stay.

Evaluation, validation and the weights themselves are float32 in every case. `fast: off` takes none of them and
deterministic kernels: the same bits on every run on one machine, unless torch has no such kernel for something that a
network does (adaptive pooling, bilinear scaling, reflected borders), which the run then names. No network or method of
ours does such a thing. By the rule on the CPU there are the same bits too. What `fast: measure` finds depends on the
hour; it is kept with the run, so that a resumed one goes on in the same way.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from toughen import devices
from toughen.losses import cross_entropy
from toughen.models import Classifier
from toughen.models.folding import Folding, agree
from toughen.models.refusals import is_models
from toughen.modes import backends, deterministic, evaluating, running
from toughen.parallel import ranks
from toughen.recipes import Recipe
from toughen.training.unsafe_kernels import REASON

SEEN = ("cpu", "cuda")
"""Kinds of devices on which these ways have been seen."""

WORTH_COMPILING = 1000
"""Batches after which compiling, some minutes, has paid for itself."""

MARGIN = 0.05
"""Share by which a way must be faster than plain computing to be taken."""

ROUNDS = 3
FORMS = 32


@dataclass(frozen=True)
class Acceleration:
    """What a run makes use of.

    Attributes:
        bf16: autocast to bfloat16 in training.
        channels_last: images and convolution weights with channels last in memory.
        compiled: graphs of the network, see `Graphs`.
        tf32: products of float32 numbers on tensor cores.
        folded: BatchNorm is folded into convolutions during attacks in inference mode.
    """

    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False
    tf32: bool = False
    folded: bool = False

    def __str__(self) -> str:
        names = [name for name, taken in asdict(self).items() if taken]
        return ", ".join(names) or "plain float32"


def chosen_ways(
    recipe: Recipe,
    model: Classifier,
    shape: Sequence[int],
    device: torch.device,
    note: Callable[[str], None],
    narrow: bool,
) -> Acceleration:
    """In which ways a run computes, on all ranks the first one's choice; told to `note` but for the rule on the CPU.

    Args:
        recipe: its `fast` and `precision`.
        model: on its device; left as it is.
        shape: of this rank's rows of a batch, (N, C, H, W).
        device: of the model.
        note: is told of the choice.
        narrow: whether it must do without channels last and graphs, see `training.unsafe_kernels`.
    """
    ways = by_rule(recipe, device)
    if recipe.fast == "measure" and device.type in SEEN:
        rows = recipe.micro_batch if isinstance(recipe.micro_batch, int) else shape[0]
        images = torch.zeros(min(rows, shape[0]), *shape[1:], device=device)
        # Every rank measures, so that all are as busy as they will be.
        ways, said = ranks.from_main(by_measuring(recipe, model, images, narrow))
        note(said)
    elif device.type != "cpu":
        left_out = ways.channels_last and not takes_channels_last(model, shape[1:], device)
        ways = replace(ways, channels_last=ways.channels_last and not left_out)
        why = "; the network does not run in channels_last" if left_out else unseen(recipe, ways, device)
        note(f"computing in {ways} (fast: {recipe.fast}{why})")
    return ways


def unseen(recipe: Recipe, ways: Acceleration, device: torch.device) -> str:
    """What is left out on a kind of device on which nobody has seen it, as the end of a note; mostly nothing."""
    if recipe.fast == "off" or device.type in SEEN:
        return ""
    which = "channels_last and graphs" if ways.bf16 else "bf16, channels_last and graphs"
    return f"; {which} have not been seen on {device.type} yet, and are left out"


def takes_channels_last(model: Classifier, shape: Sequence[int], device: torch.device) -> bool:
    """Whether a network runs forward and backward with channels last, and gives the same logits: tried on two images.

    What flattens by `view` does not.

    Args:
        model: left as it is.
        shape: of an image, (C, H, W).
        device: of the model.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    x = torch.linspace(0, 1, 2 * math.prod(shape), device=device, dtype=dtype).reshape(2, *shape)
    try:
        found = laid_out(copy.deepcopy(model), Acceleration(channels_last=True)).eval()(x)
        found.sum().backward()
    except Exception as error:
        if not is_models(error):
            raise
        return False
    with evaluating(model), torch.no_grad():
        return agree(found.detach(), model(x))


def by_rule(recipe: Recipe, device: torch.device) -> Acceleration:
    """The ways of a run for which nothing is measured: see the module's table."""
    if recipe.fast == "off" or device.type != "cuda":
        return Acceleration(bf16=recipe.precision == "bf16", folded=recipe.fast != "off")
    compiled = recipe.batches >= WORTH_COMPILING and can_compile(recipe)
    wanted = recipe.precision == "auto" and devices.computes_bf16(device)
    return Acceleration(
        bf16=wanted or recipe.precision == "bf16",
        channels_last=True,
        compiled=compiled,
        tf32=True,
        folded=not compiled,
    )


def by_measuring(recipe: Recipe, model: Classifier, images: Tensor, narrow: bool) -> tuple[Acceleration, str]:
    """The ways that were fastest on this device, see `measured`; a precision that the recipe names is kept."""
    bf16 = {"auto": (False, True), "fp32": (False,), "bf16": (True,)}[recipe.precision]
    y = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    found, said = measured(model, images, y, bf16=bf16, compiles=can_compile(recipe), narrow=narrow)
    return replace(found, tf32=images.device.type == "cuda", folded=not found.compiled), said


def can_compile(recipe: Recipe) -> bool:
    """Whether what the recipe asks for can be captured: no derivative of a derivative, no recomputed blocks."""
    return not recipe.method.second_derivatives and not recipe.activation_checkpointing


def measured(
    model: Classifier, x: Tensor, y: Tensor, *, bf16: Sequence[bool], compiles: bool, narrow: bool = False
) -> tuple[Acceleration, str]:
    """The fastest ways for a natural step of a model on a batch, and what was measured, in a sentence.

    Args:
        model: left as it is.
        x: images (N, C, H, W).
        y: classes (N,).
        bf16: which of float32 (False) and bfloat16 (True) may be taken.
        compiles: whether compiled graphs are tried, on top of the best without.
        narrow: whether channels last and graphs are not even tried, for that alone could end the process.
    """
    layouts = (False, True) if not narrow and takes_channels_last(model, x.shape[1:], x.device) else (False,)
    tried = [Acceleration(bf16=low, channels_last=last) for low in bf16 for last in layouts]
    seconds = _timed(model, x, y, tried)
    best = min(tried, key=lambda ways: seconds[ways])
    if compiles and not narrow:
        with_graphs = replace(best, compiled=True)
        try:
            seconds |= _timed(model, x, y, [with_graphs])
        except Exception:  # noqa: BLE001  # a compiler may be missing or fail in any way: then there are no graphs here
            seconds[with_graphs] = float("inf")
    plain = tried[0]
    best = min(seconds, key=lambda ways: seconds[ways])
    if seconds[best] > (1 - MARGIN) * seconds[plain]:
        best = plain
    shown = "; ".join(f"{ways} {1000 * took:.0f} ms" for ways, took in seconds.items() if took < float("inf"))
    left_out = f"; neither channels_last nor graphs were tried: {REASON}" if narrow else ""
    return best, f"measured a natural step: {shown}{left_out}; taken: {best}"


def _timed(model: Classifier, x: Tensor, y: Tensor, tried: Sequence[Acceleration]) -> dict[Acceleration, float]:
    """Seconds of a natural step in each way: the least of some rounds, in which they take turns."""
    copies = {ways: laid_out(copy.deepcopy(model), ways).train() for ways in tried}
    graphs = {ways: Graphs(made.net, len(x)) for ways, made in copies.items() if ways.compiled}
    seconds = dict.fromkeys(tried, float("inf"))
    for number in range(1 + ROUNDS):
        for ways, made in copies.items():
            devices.wait(x.device)
            started = time.perf_counter()
            with graphs[ways].on(len(x)) if ways in graphs else nullcontext():
                with torch.autocast(x.device.type, torch.bfloat16, enabled=ways.bf16):
                    loss = cross_entropy(made(x), y).mean()
                loss.backward()
            devices.wait(x.device)
            # The first round compiles, and fills caches.
            if number:
                seconds[ways] = min(seconds[ways], time.perf_counter() - started)
    return seconds


def laid_out(model: Classifier, ways: Acceleration) -> Classifier:
    """The model with its weights laid out as the ways say, in place; images follow the weights."""
    return model.to(memory_format=torch.channels_last) if ways.channels_last else model  # pyright: ignore[reportCallIssue]


def folding_of(model: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Folding | None:
    """How the model's BatchNorms are folded in attacks on images (C, H, W); None where it has none that could be."""
    return Folding.of(model, torch.linspace(0, 1, 2 * math.prod(shape), device=device, dtype=dtype).reshape(2, *shape))


class Graphs:
    """Compiled graphs of a network's forward passes, one for each form of them, and their backward passes.

    Forms differ in mode, in what asks for a gradient and in the number of images: training and attack make two to four.
    Batches of other sizes, validation and whatever else runs the network outside of `on` stay uncompiled, for each new
    form costs a minute.

    Args:
        net: the network; keeps its name, its hooks and its parameters.
        rows: images of a full batch on this rank.
        backend: of torch.compile.
    """

    def __init__(self, net: nn.Module, rows: int, backend: str | Callable[..., Any] = "inductor") -> None:
        self._net, self._rows, self._backend = net, rows, backend

    @cached_property
    def _forward(self) -> Callable[..., Any]:
        # Not before it is needed, for this too may fail where there is no compiler.
        # Beyond this many forms torch would go on uncompiled; parts of a batch may be of several sizes.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, FORMS)
        return torch.compile(self._net.forward, backend=self._backend, dynamic=False)

    def on(self, rows: int) -> AbstractContextManager[None]:
        """Run forward passes as graphs until the context ends, in a batch of so many images if it is a full one."""
        return running(self._net, self._forward) if rows == self._rows else nullcontext()


@contextmanager
def workspace(recipe: Recipe) -> Iterator[None]:
    """With `fast: off` cuBLAS sums alike each time; it asks the environment how much memory it has when it begins."""
    name = "CUBLAS_WORKSPACE_CONFIG"
    if recipe.fast != "off" or name in os.environ:
        yield
        return
    os.environ[name] = ":4096:8"
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def kernels(recipe: Recipe, ways: Acceleration, device: torch.device) -> Iterator[None]:
    """torch's choice of kernels for a run: on a CPU, and with `fast: off`, those that sum alike each time."""
    # On a CPU hardly any other is faster, but threads do add to the gradient of an indexed table in any order.
    exact = recipe.fast == "off" or device.type == "cpu"
    with backends(tf32=ways.tf32, benchmark=False, deterministic=exact), deterministic() if exact else nullcontext():
        yield


def autotuned(recipe: Recipe) -> AbstractContextManager[None]:
    """Let cuDNN time its kernels for each new shape of images and take the fastest.

    For training batches, whose shapes are few. The batches of a validation shrink as examples break.
    """
    return backends(benchmark=recipe.fast != "off")
