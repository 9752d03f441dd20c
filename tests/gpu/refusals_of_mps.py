"""What MPS refuses besides float64, seen in torch's source: pretended kernels are the CPU's, and take it all.

with RefusalsOfMps():
    train(recipe, out)
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TABLE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
"""torch's own list of its operations, and of the kinds of devices that have a kernel for each."""


class RefusalsOfMps(TorchDispatchMode):
    """Raises for operations on MPS that have no kernel there, and for those whose kernel there is less than others'."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The operation, if MPS would do it."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        to = torch.device(kwargs.get("device") or "cpu")
        if "mps" in (to.type, *(tensor.device.type for tensor in tensors)):
            self.look(func, tensors, args, kwargs)
        return func(*args, **kwargs)

    def look(self, func: Any, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise for what MPS refuses."""
        name = func._schema.name.removeprefix("aten::")
        if f"{name}.{func._overloadname}".removesuffix(".default") in without_kernel():
            raise NotImplementedError(f"The operator {func} is not currently implemented for the MPS device.")
        if name.startswith("_fused_") and any(
            value is not None for key, value in kwargs.items() if key in ("found_inf", "grad_scale")
        ):
            raise RuntimeError("grad_scale and found_inf are not supported on MPS")
        given = kwargs.get("dtype") if name == "_to_copy" else args[0].dtype if name == "copy_" else None
        source = args[1] if name == "copy_" else args[0]
        if given == torch.float64 and source.device.type == "mps" and source.dtype != given:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype: it is converted before it is copied.")
        ahead = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if name in ("_to_copy", "copy_") and ahead and source.device.type == "cpu":
            raise RuntimeError("a copy to MPS that nothing waits for may read what is no longer there")


@cache
def without_kernel() -> frozenset[str]:
    """Operations of which the CPU has a kernel, and MPS neither has one nor is given one made of others."""
    operations = {entry["func"].partition("(")[0]: entry for entry in yaml.safe_load(TABLE.read_text())}

    def kinds(entry: dict[str, Any]) -> set[str]:
        own = {kind.strip() for kinds in entry.get("dispatch", {}) for kind in kinds.split(",")}
        return own | (kinds(operations[entry["structured_delegate"]]) if "structured_delegate" in entry else set())

    found = {name: kinds(entry) for name, entry in operations.items()}

    return frozenset(
        name
        for name, of in found.items()
        if "CPU" in of and "MPS" not in of and not any(kind.startswith("Composite") for kind in of)
    )
