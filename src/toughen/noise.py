"""Random draws that are pure functions of what they are for.

Nothing in toughen uses a global random generator. A `Stream` names what is drawn (a key: seed, purpose, step or
restart) and for whom (one row number per example); the same key and row give the same numbers on any rank, in any
batch, after any resume.

    stream = Stream(("seed", 0, "pgd", restart), rows=torch.arange(4))
    start = stream.uniform((3, 32, 32))          # (4, 3, 32, 32) in [-1, 1)
    stream[2:].uniform((3, 32, 32))              # exactly the last two of them

Two readings, one interface. In evaluation `block` is None and every row has a generator of its own, so that an
example's draws never depend on its company. In training `block` is the size of the global batch: the batch is drawn at
once (ten times cheaper) and a rank or micro-batch takes its rows.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from toughen.devices import has_float64, sent

Key = tuple[str | int, ...]


def derive(*key: str | int) -> int:
    """A 63-bit seed from a key: BLAKE2b of its parts, each with its type and length, so that no two keys collide."""
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(*key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one key."""
    return torch.Generator(device=device).manual_seed(derive(*key))


@dataclass(frozen=True, eq=False)
class Stream:
    """Draws for some examples under one key.

    Args:
        key: what is drawn, e.g. `(seed, "augment", step)`.
        rows: (N,) int64 on the CPU, the examples' numbers: positions in the global batch when `block` is given,
            positions in the data set otherwise.
        block: size of the global batch, or None for one generator per row.
        device: where the numbers are made and returned. Per-row draws are made on the CPU on any device, so that
            an evaluation draws the same numbers everywhere; Gaussian ones in float32 up to 2e-6 between kinds of
            processors, for torch makes 16 and more of them in another way where AVX2 is used.
        made: where a block's numbers are made, if that is another device; see `on`.
    """

    key: Key
    rows: Tensor
    block: int | None = None
    device: torch.device | str = "cpu"
    made: torch.device | str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> "Stream":
        """The stream of some of the examples: a slice, or an index tensor or a mask, which had better be on the host.

        Of one on a device the host has to wait for what it holds.
        """
        chosen = index.to(self.rows.device) if isinstance(index, Tensor) else index
        return replace(self, rows=self.rows[chosen])

    def child(self, *purpose: str | int) -> "Stream":
        """A stream for a further purpose. Draws under one key are equal, so each use takes a child of its own."""
        return replace(self, key=(*self.key, *purpose))

    def on(self, device: torch.device | str) -> "Stream":
        """The same numbers, returned on another device."""
        return replace(self, device=device, made=self.device if self.made is None else self.made)

    def shared(self) -> np.random.Generator:
        """A generator for what a whole batch has in common: the same on every rank."""
        return np.random.default_rng(derive(*self.key))

    def uniform(self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *shape), uniform in [-1, 1); in float64 on the host where the device has none."""
        return self._draw("uniform", shape, dtype).mul_(2).sub_(1)

    def normal(self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *shape), standard normal; in float64 on the host where the device has none."""
        return self._draw("normal", shape, dtype)

    def integers(self, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """(N, *shape) int64, uniform in 0 .. high - 1; made on the host, and sent, where the device has no float64."""
        # Through float64: 53 random bits make the bias of the product below 1e-9 for any size that an image has.
        return sent(self._draw("uniform", shape, torch.float64).mul_(high).long(), self.device)

    def _draw(self, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        sample = torch.rand if kind == "uniform" else torch.randn
        made, wanted = self.device if self.made is None else self.made, self.device
        if dtype == torch.float64:
            made, wanted = (device if has_float64(device) else "cpu" for device in (made, wanted))
        if self.block is not None:
            numbers = sample(
                (self.block, *shape), generator=generator(*self.key, device=made), dtype=dtype, device=made
            )
            return sent(numbers[sent(self.rows, made)], wanted)
        rows = [sample(shape, generator=generator(*self.key, row), dtype=dtype) for row in self.rows.tolist()]
        return sent(torch.stack(rows) if rows else torch.empty((0, *shape), dtype=dtype), wanted)


def fixed(n: int, *, device: torch.device | str = "cpu") -> Stream:
    """The stream that an attack uses when none is given: keyed by the examples' positions, the same at every call."""
    return Stream(("fixed",), torch.arange(n), device=device)
