"""How much memory a training step of large networks keeps, counted without any: on fake tensors, storage by storage.

    python benchmarks/fits.py                    # a minute; writes results/fits.md

Counted is what a forward pass keeps for its backward pass, each storage once, and four float32 copies of the weights:
the weights, their gradients, the optimiser's momentum and one average. Not counted is what a single operation works
with and what the allocator loses, so leave room.
"""

import datetime
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toughen import models
from toughen.losses import cross_entropy
from toughen.training.activation_checkpointing import blocks, recomputed

NETWORKS = {"preact_resnet18": 128, "wrn-28-10": 128, "wrn-34-10": 128, "wrn-70-16": 128}
COPIES = 4
GB = 1e9


def counted(name: str, batch_size: int, *, low: bool, again: bool) -> tuple[float, float]:
    """Gigabytes that a step keeps of activations, and of weights and what goes with them."""
    sizes: dict[int, int] = {}
    # A storage's place is used again when nothing holds it.
    held: list[Tensor] = []
    with FakeTensorMode():
        model = models.build(name, num_classes=10, in_channels=3, mean=[0.5] * 3, std=[0.25] * 3).train()
        x, y = torch.rand(batch_size, 3, 32, 32), torch.zeros(batch_size, dtype=torch.int64)
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

        def keep(tensor: Tensor) -> Tensor:
            held.append(tensor)
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                sizes[storage._cdata] = storage.nbytes()
            return tensor

        with (
            recomputed(blocks(model) if again else []),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=low),
        ):
            cross_entropy(model(x), y).mean()
        weights = sum(parameter.nbytes for parameter in model.parameters())
    return sum(sizes.values()) / GB, COPIES * weights / GB


def main() -> None:
    """Count and write `results/fits.md`."""
    lines = [
        "# What fits into a device's memory",
        "",
        f"`python benchmarks/fits.py`, {datetime.date.today()}, torch {torch.__version__}: counted on fake tensors,",
        "measured on no GPU. Gigabytes that a training step keeps between its forward and its backward pass, and",
        f"{COPIES} float32 copies of the weights (with gradients, momentum and one average). Attacks keep no more.",
        "",
        "| network | batch | precision | activations | with activation_checkpointing | weights and copies |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, batch_size in NETWORKS.items():
        for low in (False, True):
            whole, copies = counted(name, batch_size, low=low, again=False)
            least, _ = counted(name, batch_size, low=low, again=True)
            precision = "bf16" if low else "fp32"
            lines.append(f"| {name} | {batch_size} | {precision} | {whole:.1f} | {least:.1f} | {copies:.1f} |")
            print(lines[-1], flush=True)
    path = Path(__file__).parent / "results" / "fits.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
