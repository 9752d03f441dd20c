"""Accelerators that are not there, on a CPU build of torch: `cuda:0`, `cuda:1`, `mps` and `xpu`.

    pretended.begin(folder)                     # before torch is imported; `folder` keeps what g++ made of the source
    x = torch.rand(3, device="cuda")            # a plain tensor whose numbers are computed on the CPU
    with pretended.waits_of() as waits: ...     # for what the host waited: {(operation, "file.py:line"): how often}

Refused as a real device does: operations on tensors of two devices, a generator of another device, `.numpy()`, work in
a forked child, float64 on MPS, more memory than `limit` says. Not seen: kernels (their results, types that they lack),
streams, NCCL, cuDNN's choices, Triton, speed.

The C++ side is `pretended.cpp`. Here is what torch's Python modules ask of a build that has these devices.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")
KINDS = ("cuda", "mps", "xpu")
COUNTS = {"cuda": 2, "mps": 1, "xpu": 1}
PACKAGE = f"{os.sep}toughen{os.sep}"

_library: Any = None
_there = "cuda"
_counting: list[Counter[tuple[str, str]]] = []
_callback: Any = None


def missing() -> str | None:
    """Why the devices cannot be pretended here; None where they can."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return "torch is not installed"
    if "cuda: str | None = None" not in (Path(torch.origin).parent / "version.py").read_text().replace(
        "Optional[str]", "str | None"
    ):
        return "this torch is built for CUDA"
    if shutil.which("g++") is None:
        return "there is no g++"
    return None


def has_begun() -> bool:
    """Whether torch is imported."""
    return "torch" in sys.modules


def begin(folder: Path) -> None:
    """Pretend from now on, in this process.

    Args:
        folder: where the compiled C++ side is kept, for each version of torch and of the source.
    """
    global _library, _callback
    assert not has_begun(), "torch asks for its devices when it is imported: begin before"
    home = Path(importlib.util.find_spec("torch").origin).parent  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
    made = _compiled(home, folder)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(home / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    _library = ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)
    for name in ("held", "peak"):
        getattr(_library, f"pretended_{name}").restype = ctypes.c_int64
    _library.pretended_is_forked.restype = ctypes.c_bool
    _callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_waited)
    _library.pretended_on_wait(_callback)
    with warnings.catch_warnings():
        # torch has a Python kernel of its own for MPS.
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        import torch

    _offer_cuda(torch)
    _offer_mps(torch)
    _offer_xpu(torch)
    _offer_storages(torch)


def _compiled(home: Path, folder: Path) -> Path:
    import hashlib

    told = (home / "version.py").read_text() + SOURCE.read_text()
    made = folder / f"pretended-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        include, written = home / "include", made.with_suffix(f".{os.getpid()}")
        headers = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
        libraries = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
        flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w"]
        subprocess.run(["g++", *flags, *headers, str(SOURCE), "-o", str(written), *libraries], check=True)
        written.replace(made)
    return made


def _waited(operation: bytes) -> None:
    for counting in _counting:
        counting[operation.decode(), _line()] += 1


def _line() -> str:
    """The innermost line of the package on the stack; autograd's threads run what the main thread waits for."""
    for frame in (sys._getframe(1), sys._current_frames()[_main_thread()]):
        while frame:
            name = frame.f_code.co_filename
            if PACKAGE in name and "site-packages" not in name:
                return f"{name.rpartition(PACKAGE)[2]}:{frame.f_lineno}"
            frame = frame.f_back
    return "elsewhere"


def _main_thread() -> int:
    import threading

    return threading.main_thread().ident or 0


@contextmanager
def waits_of() -> Iterator[Counter[tuple[str, str]]]:
    """For what the host waits until the context ends: {(operation, "file.py:line" in the package): how often}."""
    found: Counter[tuple[str, str]] = Counter()
    _counting.append(found)
    try:
        yield found
    finally:
        _counting.remove(found)


@contextmanager
def limit(size: int, kind: str = "cuda", index: int = 0) -> Iterator[None]:
    """A device with so many bytes of memory beside what it holds."""
    number = KINDS.index(kind)
    _library.pretended_limit(number, index, ctypes.c_int64(_library.pretended_held(number, index) + size))
    try:
        yield
    finally:
        _library.pretended_limit(number, index, ctypes.c_int64(0))


@contextmanager
def only(kind: str) -> Iterator[None]:
    """A machine whose accelerator is of this kind; it is one with GPUs by CUDA otherwise."""
    global _there
    from torch.backends import mps

    found, _there = _there, kind
    mps.is_available.cache_clear()
    _library.pretended_be(KINDS.index(kind))
    try:
        yield
    finally:
        _there = found
        mps.is_available.cache_clear()
        _library.pretended_be(KINDS.index(found))


def _offers(kind: str) -> int:
    """How many devices of a kind are to be seen."""
    if kind != _there:
        return 0
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") if kind == "cuda" else None
    return COUNTS[kind] if seen is None else len([number for number in seen.split(",") if number in ("0", "1")])


def _generators(torch: Any, kind: str) -> tuple[Any, ...]:
    """The device's own generators."""
    _library.pretended_give_default(True)
    try:
        return tuple(torch.Generator(device=torch.device(kind, index)) for index in range(COUNTS[kind]))
    finally:
        _library.pretended_give_default(False)


def _put(module: ModuleType, **values: Any) -> None:
    for name, value in values.items():
        setattr(module, name, value)


def _offer_cuda(torch: Any) -> None:
    number = KINDS.index("cuda")

    def exchange(index: int) -> int:
        found = _library.pretended_current(number)
        if index >= 0:
            _library.pretended_set(number, index)
        return found

    def statistics(index: int) -> dict[str, Any]:
        held, peak = _library.pretended_held(number, index), _library.pretended_peak(number, index)
        return {
            "allocated_bytes": {"all": {"current": held, "peak": peak}},
            "reserved_bytes": {"all": {"current": held, "peak": peak}},
        }

    _put(
        torch._C,
        _cuda_getDeviceCount=lambda: _offers("cuda"),
        _cuda_init=lambda: None,
        _cuda_isInBadFork=lambda: _library.pretended_is_forked(),
        _cuda_getDevice=lambda: _library.pretended_current(number),
        _cuda_setDevice=lambda index: _library.pretended_set(number, index),
        _cuda_synchronize=lambda: _waited(b"synchronize"),
        _cuda_emptyCache=lambda: None,
        _cuda_memoryStats=statistics,
        _cuda_resetPeakMemoryStats=lambda index: _library.pretended_forget_peak(number, index),
        _cuda_isCurrentStreamCapturing=lambda: False,
        _cuda_getCompiledVersion=lambda: 0,
        _cuda_getArchFlags=lambda: "sm_90",
        _cuda_getCurrentRawStream=lambda index: 0,
    )
    cuda = torch.cuda
    properties = SimpleNamespace(name="pretended", major=9, minor=0, total_memory=2**40, multi_processor_count=1)
    _put(
        cuda,
        _cudart=SimpleNamespace(),
        _device_count_nvml=lambda: -1,
        _is_in_bad_fork=lambda: _library.pretended_is_forked(),
        default_generators=_generators(torch, "cuda"),
        get_device_properties=lambda device=None: properties,
        get_device_name=lambda device=None: properties.name,
        get_device_capability=lambda device=None: (properties.major, properties.minor),
        is_current_stream_capturing=lambda: False,
        _exchange_device=exchange,
        _maybe_exchange_device=exchange,
        device_count=lambda: _offers("cuda"),
    )
    _put(cuda.random, default_generators=cuda.default_generators)


def _offer_mps(torch: Any) -> None:
    (own,) = _generators(torch, "mps")
    _put(
        torch._C,
        _has_mps=True,
        _mps_is_available=lambda: _there == "mps",
        _mps_is_on_macos_or_newer=lambda major, minor: True,
        _mps_get_default_generator=lambda: own,
        _mps_deviceSynchronize=lambda: _waited(b"synchronize"),
        _mps_emptyCache=lambda: None,
        _mps_currentAllocatedMemory=lambda: _library.pretended_held(KINDS.index("mps"), 0),
    )


def _offer_xpu(torch: Any) -> None:
    number, xpu = KINDS.index("xpu"), torch.xpu
    _put(
        torch._C,
        _has_xpu=True,
        _xpu_getDeviceCount=lambda: _offers("xpu"),
        _xpu_init=lambda: None,
        _xpu_isInBadFork=lambda: _library.pretended_is_forked(),
        _xpu_getDevice=lambda: 0,
        _xpu_setDevice=lambda index: None,
        _xpu_synchronize=lambda index: _waited(b"synchronize"),
        _xpu_emptyCache=lambda: None,
        _xpu_getCurrentRawStream=lambda index: 0,
    )
    _put(
        xpu,
        default_generators=_generators(torch, "xpu"),
        _is_in_bad_fork=lambda: _library.pretended_is_forked(),
        is_bf16_supported=lambda including_emulation=True: True,
        max_memory_allocated=lambda device=None: _library.pretended_peak(number, 0),
        reset_peak_memory_stats=lambda device=None: _library.pretended_forget_peak(number, 0),
        get_device_name=lambda device=None: "pretended",
        get_device_properties=lambda device=None: SimpleNamespace(name="pretended", has_fp64=True),
        current_device=lambda: 0,
        device_count=lambda: _offers("xpu"),
        is_available=lambda: _offers("xpu") > 0,
    )


def _offer_storages(torch: Any) -> None:
    """Copy storages, for deep copies: those of CUDA are made by a part of torch that is not in this build."""
    clone: Callable[[Any], Any] = torch.UntypedStorage.clone

    def cloned(self: Any) -> Any:
        if self.device.type == "cpu":
            return clone(self)
        twin = torch.empty(self.nbytes(), dtype=torch.uint8, device=self.device)
        whole = torch.empty(0, dtype=torch.uint8, device=self.device).set_(self)
        return twin.copy_(whole).untyped_storage()

    torch.UntypedStorage.clone = cloned
