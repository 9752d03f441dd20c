"""How products of float32 numbers are computed: all of torch's switches for it, put one way and back.

    with products("ieee"):      # 24 bits, as float32 says; "tf32": 10 bits where a device has such products
        logits = model(x)

torch keeps each switch twice. The old ones (`allow_tf32`, `set_float32_matmul_precision`) write the new
(`fp32_precision`) too, and raise when read where the two disagree, as they do once a user has set a new one. The new
form a tree: what is "none" by itself goes by what is above it. So what each holds by itself is found with "none" above.

One thing torch cannot be told: until it is first written, cuDNN's switch of an operation is "tf32" and yet goes by what
is above it. Afterwards it is one or the other, unless the old switch could not be read, when it is not written.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Self

import torch

Precision = Literal["ieee", "tf32"]
Switch = tuple[str, str]

TOP: Switch = ("generic", "all")
BACKENDS: tuple[Switch, ...] = (("cuda", "all"), ("mkldnn", "all"))
OPERATIONS = tuple((backend, operation) for backend, _ in BACKENDS for operation in ("conv", "rnn", "matmul"))

# Not by torch's attributes, of which `torch.backends.mkldnn.fp32_precision` writes another switch than it reads.
_get, _set = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Every product of float32 numbers in one precision, and afterwards all switches as they were."""
    found = _Switches.read()
    try:
        found.put(precision)
        yield
    finally:
        found.put_back(precision)


@dataclass(frozen=True)
class _Switches:
    """What was found.

    Attributes:
        above: by switch, what those hold that others go by.
        own: by switch, what each operation holds by itself.
        matmul: the old switch of matrix products.
        cudnn: that of cuDNN; None where it cannot be read.
        onednn: that of oneDNN, which matters on Intel's GPUs; None where torch is built without.
    """

    above: dict[Switch, str]
    own: dict[Switch, str]
    matmul: str
    cudnn: bool | None
    onednn: bool | None

    @classmethod
    def read(cls) -> Self:
        cudnn = None
        with suppress(RuntimeError):
            cudnn = torch._C._get_cudnn_allow_tf32()
        above: dict[Switch, str] = {}
        for switch in (TOP, *BACKENDS):
            above[switch] = _get(*switch)
            _set(*switch, "none")
        own = {switch: _get(*switch) for switch in OPERATIONS}
        for backend, _ in BACKENDS:
            _set(backend, "matmul", "none")
        matmul = torch.get_float32_matmul_precision()
        return cls(above, own, matmul, cudnn, torch._C._get_onednn_allow_tf32())

    def put(self, precision: Precision) -> None:
        coarse = precision == "tf32"
        # The old ones first, which write the new.
        torch.set_float32_matmul_precision("high" if coarse else "highest")
        if self.cudnn is not None and self.cudnn != coarse:
            torch._C._set_cudnn_allow_tf32(coarse)
        if self.onednn is not None:
            torch._C._set_onednn_allow_tf32(coarse)
        for switch in BACKENDS:
            _set(*switch, precision)
        for switch in OPERATIONS:
            if _get(*switch) != precision:
                _set(*switch, precision)
        _set(*TOP, self.above[TOP])

    def put_back(self, precision: Precision) -> None:
        """Undo `put`; what it has not changed is not written, see the module."""
        torch.set_float32_matmul_precision(self.matmul)
        if self.cudnn is not None and self.cudnn != (precision == "tf32"):
            torch._C._set_cudnn_allow_tf32(self.cudnn)
        if self.onednn is not None:
            torch._C._set_onednn_allow_tf32(self.onednn)
        for switch in self.above:
            _set(*switch, "none")
        for switch, value in self.own.items():
            if _get(*switch) != value:
                _set(*switch, value)
        for switch, value in self.above.items():
            _set(*switch, value)
