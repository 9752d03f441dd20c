"""Whether torch's convolutions on the CPU keep to their memory, and whether ours is a way around those that do not.

    make bench-heap                                      # well over half an hour; writes results/heap_checks.md
    python benchmarks/heap_checks.py --networks small_cnn --no-runs

Every convolution of our networks, at widths from 1 on, and a grid of narrow ones run forward, back to the images, back
to the weights and through both again (the gradient of a gradient), in processes of their own under glibc's checks of
malloc (MALLOC_CHECK_=3), with images, weights or both laid out with channels last. A process that dies is one finding;
numbers that are not those of float64 are another. Whatever is found must be something that `training.unsafe_kernels`
keeps clear of. Then whole runs: training in every way that can be asked for, what measuring tries, and an evaluation.
Fails where a convolution is unsound that `narrow` lets through, or where a run dies.
"""

import argparse
import ctypes
import datetime
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from heap_runs import EVALUATED, NETWORKS, WAYS
from toughen import models
from toughen.noise import generator
from toughen.training.unsafe_kernels import narrow

RESULT = Path(__file__).parent / "results" / "heap_checks.md"
CHECKS = "libc_malloc_debug.so.0"
CPU = torch.device("cpu")
THREADS = 2

PASSES = {
    "forward": "forward",
    "images": "gradient by images",
    "weights": "gradient by weights",
    "second": "gradient of a gradient",
}
LAYOUTS = {"usual": (False, False), "images": (True, False), "weights": (False, True), "both": (True, True)}
"""Which of images and weights have channels last."""

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest deviation from float64, as a share of the largest number."""

WIDTHS = {
    "small_cnn": (1, 2, 8),
    "preact_resnet18": (1, 2, 3, 4, 6, 7, 8, 12, 16),
    "resnet18": (2, 4),
    "resnet50": (1, 2, 4),
    "madry-w32-10": (1, 2),
    "wrn-10-1": (None,),
}
"""Those networks whose convolutions are looked at: None where the name says the width."""

IMAGES = ((1, 28), (3, 16))
"""Channels and sides of images."""


@dataclass(frozen=True)
class Convolution:
    """One convolution.

    Attributes:
        images: (N, C, H, W).
        weights: (O, C / groups, h, w), or for a transposed one (C, O, h, w).
        stride: down and across.
        padding: down and across.
        groups: of channels.
        transposed: whether it is the transpose of one.
    """

    images: tuple[int, ...]
    weights: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    groups: int = 1
    transposed: bool = False

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Of images x."""
        if self.transposed:
            return F.conv_transpose2d(x, weight, None, self.stride, output_padding=tuple(s - 1 for s in self.stride))
        return F.conv2d(x, weight, None, self.stride, self.padding, 1, self.groups)

    @property
    def kind(self) -> str:
        """What the table puts it under: kernel, stride, and the channels that the fault goes by."""
        channels = self.weights[1]
        few = "1 to 7" if channels < 8 else "8 to 15" if channels < 16 else "16 and more"
        what = "x".join(map(str, self.weights[2:])) + (" transposed" if self.transposed else "")
        return f"{what}, {'strided' if max(self.stride) > 1 else 'stride 1'}, {few} channels"


class _Seeing(TorchDispatchMode):
    """Notes the convolutions that a network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Convolution] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding, _, transposed, _, groups = args
            assert not transposed
            conv = Convolution(tuple(x.shape), tuple(weight.shape), tuple(stride), tuple(padding), groups)
            self.seen.append(conv)
        return func(*args, **(kwargs or {}))


def of_networks(names: Sequence[str]) -> Iterator[Convolution]:
    """The convolutions of our networks, for batches of five."""
    for name in names:
        for width in WIDTHS[name]:
            options: dict[str, Any] = {} if width is None else {"width": width}
            for channels, side in IMAGES:
                model = models.build(name, num_classes=3, in_channels=channels, **options).eval()
                with torch.no_grad(), _Seeing() as seeing:
                    model(torch.zeros(5, channels, side, side))
                yield from seeing.seen


def narrow_ones() -> Iterator[Convolution]:
    """Of one pixel with a stride, around the channels that kernels take at once, and their like that are sound."""
    for channels in (*range(1, 10), 12, 15, 16, 17):
        for side, out in ((8, 8), (32, 8), (32, 24)):
            yield Convolution((5, channels, side, side), (out, channels, 1, 1), (2, 2))
        x = (5, channels, 12, 12)
        yield Convolution(x, (8, channels, 1, 1), (3, 3))
        yield Convolution(x, (8, channels, 1, 1), (1, 2))
        yield Convolution(x, (8, channels, 1, 1), (2, 2), (1, 1))
        yield Convolution((5, channels, 11, 11), (8, channels, 1, 1), (2, 2))
        yield Convolution(x, (8, channels, 2, 2), (2, 2))
        yield Convolution(x, (8 * channels, 1, 1, 1), (2, 2), groups=channels)
        yield Convolution((5, 8, 16, 16), (8, channels, 1, 1), (2, 2), transposed=True)


def tensors(of: str, conv: Convolution, x: Tensor, weight: Tensor, above: Tensor) -> list[Tensor]:
    """What a pass computes; `above` is the gradient by the convolution's output."""
    x, weight = x.requires_grad_(of in ("images", "second")), weight.requires_grad_(of in ("weights", "second"))
    out = conv(x, weight)
    if of == "forward":
        return [out]
    if of != "second":
        return list(torch.autograd.grad(out, x if of == "images" else weight, above))
    (slope,) = torch.autograd.grad(out, x, above, create_graph=True)
    return list(torch.autograd.grad(slope.square().sum(), weight))


def laid_out(tensor: Tensor, last: bool) -> Tensor:
    """A copy, with channels last or in the usual order."""
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty_like(tensor, memory_format=order).copy_(tensor.detach())


def computed(conv: Convolution, of: str, layout: str, dtype: torch.dtype) -> str:
    """Compute a pass three times over, with small tensors in between; "" or how its numbers are wrong."""
    draw = generator("heap")
    x, weight = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in (conv.images, conv.weights))
    above = torch.randn(conv(x, weight).shape, generator=draw, dtype=torch.float64)
    expected = tensors(of, conv, x, weight, above)
    for _ in range(3):
        first, second = (laid_out(t.to(dtype), last) for t, last in zip((x, weight), LAYOUTS[layout], strict=True))
        found = tensors(of, conv, first, second, above.to(dtype))
        for one, other in zip(found, expected, strict=True):
            deviation = float((one.double() - other).abs().max() / other.abs().max())
            if not deviation <= TOLERANCES[dtype]:
                return "wrong numbers"
        # What a small block's neighbour overwrote is seen when the block is given back.
        neighbours = [torch.empty(n) for n in range(1, 64)]
        del neighbours
    return ""


def all_computed(each: Sequence[tuple[Convolution, str, str, torch.dtype]]) -> str:
    """The first fault of some passes, "" where all are sound."""
    return next((fault for some in each if (fault := computed(*some))), "")


def alone(work: Callable[[], str]) -> str:
    """What it says in a process forked for it, or the name of the signal that ended that."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # What glibc says of a broken heap would drown the table.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        # Of its own seconds: one that never ends has overwritten what its threads wait at.
        signal.setitimer(signal.ITIMER_PROF, 60)
        torch.set_num_threads(THREADS)
        try:
            said = work()
        except RuntimeError as error:
            said = f"RuntimeError: {error}".splitlines()[0]
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if code == 0 else signal.Signals(-code).name if code < 0 else f"exit code {code}"


@dataclass(frozen=True)
class Found:
    """What came of one pass.

    Attributes:
        conv: what was computed.
        of: which pass.
        layout: of images and weights.
        dtype: in which it was computed.
        fault: "" where it is sound.
    """

    conv: Convolution
    of: str
    layout: str
    dtype: torch.dtype
    fault: str


def looked_at(convolutions: Sequence[Convolution], layouts: Sequence[str]) -> Iterator[Found]:
    """Every pass of every convolution: in float32 in these layouts, in bfloat16 with channels last alone.

    All of one convolution in one process, and only where that comes to grief one by one: a process costs more than what
    it does here.
    """
    for number, conv in enumerate(convolutions):
        kinds = [(torch.float32, layout) for layout in layouts] + [(torch.bfloat16, "both")]
        each = [(conv, of, layout, dtype) for dtype, layout in kinds for of in PASSES]
        together = alone(partial(all_computed, each))
        faults = [together and alone(partial(computed, *some)) for some in each]
        for some, fault in zip(each, faults, strict=True):
            yield Found(*some, fault=fault if any(faults) else together)
        if number % 20 == 19:
            print(f"{number + 1} of {len(convolutions)} convolutions", flush=True)


class _Alone(nn.Module):
    """A network of one convolution."""

    def __init__(self, conv: Convolution) -> None:
        super().__init__()
        self.conv, self.weight = conv, nn.Parameter(torch.zeros(conv.weights))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.weight)


def kept_clear_of(found: Found) -> bool:
    """Whether our training does without the layout."""
    if found.of not in ("weights", "second") or found.layout == "usual":
        return False
    return narrow(_Alone(found.conv), found.conv.images[1:], CPU)


def table(found: Sequence[Found]) -> list[str]:
    """Rows by kind of convolution, layout and type; sound and all of each pass."""
    sound: Counter[tuple[str, ...]] = Counter()
    whole: Counter[tuple[str, ...]] = Counter()
    for each in found:
        layout = "usual" if each.layout == "usual" else "channels last"
        key = each.conv.kind, layout, str(each.dtype).removeprefix("torch."), each.of
        whole[key] += 1
        sound[key] += not each.fault
    rows = [
        f"| convolution | layout | type | {' | '.join(PASSES.values())} |",
        f"| --- | --- | --- |{' ---: |' * len(PASSES)}",
    ]
    for kind, layout, dtype in sorted({key[:3] for key in whole}):
        counts = [(sound[kind, layout, dtype, of], whole[kind, layout, dtype, of]) for of in PASSES]
        cells = [f"{good}" if good == all_ else f"**{good} of {all_}**" for good, all_ in counts]
        rows.append(f"| {kind} | {layout} | {dtype} | {' | '.join(cells)} |")
    return rows


def in_a_process(network: str, ways: str) -> str:
    """What came of a run in a process of its own: "" or how it ended."""
    call = [sys.executable, str(Path(__file__).with_name("heap_runs.py")), network, ways]
    ended = subprocess.run(call, capture_output=True, text=True, check=False)
    if ended.returncode == 0:
        return ""
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    return signal.Signals(-ended.returncode).name if ended.returncode < 0 else f"exit code {ended.returncode}: {last}"


def processor() -> str:
    """Its name, and which instructions torch takes here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "a processor")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    has = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    said = (
        f"{named} with {', '.join(has) or 'neither AVX2 nor AVX-512'}, ATen's {torch.backends.cpu.get_cpu_capability()}"
    )
    return said + (f", ONEDNN_MAX_CPU_ISA={limit}" if limit else "")


def report(found: Sequence[Found], runs: dict[tuple[str, str], str], missed: Sequence[Found]) -> list[str]:
    """The page."""
    faults = [each for each in found if each.fault]
    convolutions, how = len({each.conv for each in found}), Counter(each.fault for each in faults)
    lines = [
        "# Whether torch's convolutions on the CPU keep to their memory",
        "",
        f"`python benchmarks/heap_checks.py`, {datetime.date.today()}, {processor()}, {os.cpu_count()} cores, torch",
        f"{torch.__version__}, under `MALLOC_CHECK_=3`. {convolutions} convolutions, {len(found)} passes in processes",
        "of their own: how many of each kind came through three times with the numbers of float64 (of how many, where",
        "that is not all). A process may come through by luck: kinds count, not single convolutions.",
        "",
        *table(found),
        "",
        "How the others ended: "
        + (", ".join(f"{n} x {what}" for what, n in how.most_common()) or "there are none")
        + ".",
        f"Our training keeps clear of all but {len(missed)} of them (`training.unsafe_kernels`).",
        *(f"- NOT KEPT CLEAR OF: {each}" for each in missed),
    ]
    if runs:
        ways = [*WAYS, EVALUATED]
        lines += [
            "",
            "Whole runs: three batches of adversarial training and of GradAlign (the former alone where graphs",
        ]
        lines += [
            "are compiled), and an evaluation by `quick` with its audit.",
            "",
            f"| network | {' | '.join(ways)} |",
        ]
        lines += ["| --- |" + " --- |" * len(ways)]
        for network in NETWORKS:
            lines.append(f"| {network} | {' | '.join(runs[network, way] or 'sound' for way in ways)} |")
    return lines


def main() -> None:
    """Look, print, write the page, and fail where something was found that we do not keep clear of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--no-runs", action="store_true", help="convolutions alone; nothing is written")
    given = parser.parse_args()
    if "MALLOC_CHECK_" not in os.environ:
        try:
            ctypes.CDLL(CHECKS)
        except OSError:
            sys.exit(f"{CHECKS} is not on this machine; the checks of malloc need Linux with glibc 2.34 or later")
        os.environ |= {"MALLOC_CHECK_": "3", "LD_PRELOAD": CHECKS, "OMP_WAIT_POLICY": "passive"}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    # A process that has worked with threads cannot be forked.
    torch.set_num_threads(1)
    grid = list(dict.fromkeys(narrow_ones()))
    others = [conv for conv in dict.fromkeys(of_networks(given.networks)) if conv not in grid]
    found = [*looked_at(grid, list(LAYOUTS)), *looked_at(others, ("usual", "both"))]
    missed = [each for each in found if each.fault and not kept_clear_of(each)]
    runs: dict[tuple[str, str], str] = {}
    for network in () if given.no_runs else NETWORKS:
        for ways in (*WAYS, EVALUATED):
            runs[network, ways] = in_a_process(network, ways)
            print(f"{network}, {ways}: {runs[network, ways] or 'sound'}", flush=True)
    page = report(found, runs, missed)
    print("\n".join(page))
    if not given.no_runs:
        RESULT.write_text("\n".join(page) + "\n", encoding="utf-8")
    if missed or any(runs.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
