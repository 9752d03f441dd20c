"""Hostile files: each function writes one into a folder, and says on which command lines it would be read.

    place = Place(folder, run=a_run_folder, exported=an_exported_model)
    CASES["bare_pickle"](place)          # [["evaluate", "resnet18=evil.pt", ...], ["train", ...], ...]

A payload that is run writes a file `CANARY`-NAME beside the folders. Every command must refuse with exit code 2, except
those that are `Fine`: they have a use for what is whole, and the rest must do no harm.
"""

import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Commands = list[list[str]]

CASES: dict[str, Callable[["Place"], Commands]] = {}
CANARY = "canary"
MARKUP = "<script>alert(1)</script>"
SMALL = """\
name: small
data: {source: mnist5k, limit: 60, validation: 20}
model: {name: small_cnn, width: 2}
method: {name: free, replays: 2}
threat: linf:0.1
batch_size: 16
steps: 8
selection: {suite: pgd-1, every: 8}
"""
AIM = ["--data", "mnist5k", "--threat", "linf:0.1", "--limit", "4", "--suite", "pgd-1"]


class Fine(list[str]):
    """A command that ends well although a file is hostile."""


class Place:
    """A folder for one case, with a small recipe in it and a module that nobody may import.

    Args:
        folder: of this case alone; made here.
        run: a whole run folder, to be copied.
        exported: a whole exported model, to be copied.
    """

    def __init__(self, folder: Path, run: Path, exported: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self._run, self._exported = folder, run, exported
        self.canary = folder.parent / f"{CANARY}-{folder.name}"
        self.write("small.yaml", SMALL)
        self.write("toughen_canary.py", f"open({str(self.canary)!r}, 'w').close()\nNet = run = SUITE = {{}}\n")

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def recipe(self, old: str, new: str, name: str = "evil.yaml") -> Commands:
        """A recipe with one line changed."""
        assert old in SMALL
        self.write(name, SMALL.replace(old, new))
        return [["train", name], ["train", name, "--dry-run"]]

    def run(self) -> Path:
        """A whole run folder, to be spoilt."""
        return Path(shutil.copytree(self._run, self / "run"))

    def checkpoint(self) -> Path:
        """The newest checkpoint of `run`."""
        return max((self / "run").glob("checkpoints/step-*"))

    def exported(self) -> Path:
        """A whole exported model, to be spoilt."""
        return Path(shutil.copytree(self._exported, self / "exported"))

    def payload(self) -> "Payload":
        """What writes the canary when it is unpickled."""
        return Payload(os.system, (f"touch {self.canary}",))


@dataclass
class Payload:
    """Pickles as a call."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def case(make: Callable[[Place], Commands]) -> Callable[[Place], Commands]:
    """Enter a case by its function's name."""
    CASES[make.__name__] = make
    return make


def weights(name: str = "evil.pt") -> Commands:
    """Everywhere that a file of weights is read."""
    return [
        ["evaluate", f"resnet18={name}", *AIM],
        ["train", "small.yaml", f"model.weights={name}", "--out", "out"],
        ["evaluate", name, *AIM],
        ["label", "mnist5k", "--scorer", name, "--against", "mnist5k", "--count", "10", "--out", "set"],
    ]


def data(name: str) -> Commands:
    """Everywhere that a source of images is read."""
    return [
        ["train", "small.yaml", f"data={name}", "--out", "out"],
        ["train", "small.yaml", f"data={name}", "data.size=28", "--out", "out"],
        ["label", name, "--scorer", "small_cnn=no.pt", "--against", name, "--count", "10", "--out", "set"],
        ["train", "small.yaml", "data.extra.source=" + name, "--out", "out"],
    ]


def of_run() -> Commands:
    """Everywhere that a run folder is read for its weights."""
    return [
        ["evaluate", "run", "--limit", "4", "--suite", "pgd-1"],
        ["export", "run", "--out", "out"],
        ["analyse", "run", "--limit", "4", "--only", "eps-sweep"],
    ]


def of_exported() -> Commands:
    """Everywhere that an exported model is read."""
    return [["evaluate", "exported", *AIM], ["evaluate", "exported/model.safetensors", *AIM]]


def reported() -> Commands:
    """The report, which leaves out what it cannot read."""
    return [Fine(["report", "run", "--out", "page.html", "--plain"])]


# --- pickles


@case
def pickle_in_zip(place: Place) -> Commands:
    torch.save({"conv.weight": place.payload()}, place / "evil.pt")
    return weights()


@case
def pickle_in_zip_beside_weights(place: Place) -> Commands:
    torch.save({"state_dict": {"w": torch.ones(2, 2)}, "args": [place.payload()]}, place / "evil.ckpt")
    return weights("evil.ckpt")


@case
def bare_pickle(place: Place) -> Commands:
    place.write("evil.pt", pickle.dumps(place.payload()))
    return weights()


@case
def bare_pickle_of_text(place: Place) -> Commands:
    place.write("evil.pt", f"cos\nsystem\n(S'touch {place.canary}'\ntR.".encode())
    return weights()


@case
def legacy_torch(place: Place) -> Commands:
    torch.save([place.payload()], place / "evil.pth", _use_new_zipfile_serialization=False)
    return weights("evil.pth")


@case
def legacy_tar(place: Place) -> Commands:
    with tarfile.open(place / "evil.pt", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(place.payload())
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return weights()


@case
def builtins_eval(place: Place) -> Commands:
    torch.save({"w": Payload(eval, (f"open({str(place.canary)!r}, 'w')",))}, place / "evil.pt")
    return weights()


@case
def getattr_chain(place: Place) -> Commands:
    found = Payload(getattr, (Payload(__import__, ("os",)), "system"))
    content = pickle.dumps(found)[:-1] + pickle.dumps((f"touch {place.canary}",))[2:-1] + b"R."
    place.write("evil.pt", content)
    return weights()


@case
def numpy_and_functools(place: Place) -> Commands:
    place.write("evil.pt", f"cnumpy.testing._private.utils\nrunstring\n(S'0'\n}}tR{place.canary.name}.".encode())
    return weights()


@case
def arguments_of_a_program(place: Place) -> Commands:
    import argparse

    torch.save({"model": {"w": torch.ones(2, 2)}, "args": argparse.Namespace(lr=0.1)}, place / "evil.pt")
    return weights()


@case
def whole_module(place: Place) -> Commands:
    torch.save(torch.nn.Linear(2, 2), place / "evil.pt")
    return weights()


@case
def torchscript(place: Place) -> Commands:
    with zipfile.ZipFile(place / "evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", pickle.dumps(place.payload()))
        archive.writestr("evil/data.pkl", pickle.dumps(place.payload()))
        archive.writestr("evil/code/__torch__.py", "import os\n")
        archive.writestr("evil/version", "3\n")
    return weights()


@case
def distributed_checkpoint(place: Place) -> Commands:
    place.write("evil/.metadata", pickle.dumps(place.payload()))
    place.write("evil/__0_0.distcp", pickle.dumps(place.payload()))
    return [["evaluate", "evil", *AIM], *weights("evil")[:2], *data("evil")]


@case
def pickle_named_safetensors(place: Place) -> Commands:
    place.write("evil.safetensors", pickle.dumps(place.payload()))
    return weights("evil.safetensors")


def python_layout(place: Place, content: bytes) -> Commands:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        place.write(f"evil/{name}", content)
    return [["import", "evil", "--out", "cifar.npz"], *data("evil")]


@case
def cifar_os_system(place: Place) -> Commands:
    return python_layout(place, pickle.dumps({b"data": place.payload(), b"labels": []}))


@case
def cifar_getattr(place: Place) -> Commands:
    return python_layout(place, pickle.dumps({b"data": Payload(getattr, (b"", "__class__"))}))


@case
def cifar_endless(place: Place) -> Commands:
    return python_layout(place, b"\x80\x04" + b"](" * 100_000 + b".")


@case
def cifar_memory(place: Place) -> Commands:
    return python_layout(place, b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".")


# --- weights that are no pickles of code, and no weights


@case
def pt_bomb(place: Place) -> Commands:
    bomb(place / "evil.pt", "evil/data.pkl", b"", 1024)
    with zipfile.ZipFile(place / "evil.pt", "a") as archive:
        archive.writestr("evil/version", "3\n")
    return weights()


@case
def pt_million_members(place: Place) -> Commands:
    million_members(place / "evil.pt")
    return weights()[:2]


@case
def pt_storage_beyond(place: Place) -> Commands:
    torch.save({"w": torch.ones(3, 5)}, place / "good.pt")
    with zipfile.ZipFile(place / "good.pt") as good, zipfile.ZipFile(place / "evil.pt", "w") as evil:
        for info in good.infolist():
            content = good.read(info)
            # Tuples of small numbers are pickled as K n: the size of the storage, and then the shape.
            content = content.replace(b"K\x0f", b"J\x00\x00\x00\x7f") if info.filename.endswith("data.pkl") else content
            evil.writestr(info.filename, content)
    return weights()


@case
def pt_expanded(place: Place) -> Commands:
    wide = torch.ones(1, 1).expand(10**6, 10**6)
    torch.save({"conv1.weight": wide, "fc.weight": wide}, place / "evil.pt")
    return weights()


@case
def pt_statistics(place: Place) -> Commands:
    wide = torch.ones(1).expand(10**11)
    torch.save({"mean": torch.ones(1), "std": wide, "fc.weight": torch.ones(2, 2)}, place / "evil.pt")
    return weights()


@case
def pt_strange_tensors(place: Place) -> Commands:
    sparse = torch.eye(3).to_sparse()
    strange = {"mean": torch.ones(3, device="meta"), "std": torch.ones(3, device="meta"), "conv1.weight": sparse}
    torch.save({**strange, "fc.weight": torch.ones(2, 2, dtype=torch.complex64)}, place / "evil.pt")
    return weights()


@case
def pt_quantised(place: Place) -> Commands:
    place.write("evil.pt", b"\x80\x02ctorch._utils\n_rebuild_qtensor\n(tR.")
    return weights()


@case
def pt_bytearray(place: Place) -> Commands:
    torch.save({"w": torch.ones(2, 2)}, place / "good.pt")
    with zipfile.ZipFile(place / "evil.pt", "w") as evil:
        evil.writestr("evil/data.pkl", b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.")
        evil.writestr("evil/version", "3\n")
        evil.writestr("evil/byteorder", "little")
    return weights()


@case
def pt_long_names(place: Place) -> Commands:
    torch.save({"a." * 50_000 + "weight": torch.ones(2, 2)}, place / "evil.pt")
    return weights()


@case
def pt_names_of_a_terminal(place: Place) -> Commands:
    odd = {f"\x1b]0;{MARKUP}\x07\r\nerror: {i}\0../../x": torch.ones(2, 2) for i in range(2)}
    torch.save({"model\x1b[2J\n": odd, "ema\n": odd}, place / "evil.pt")
    return weights()


@case
def pt_holds_itself(place: Place) -> Commands:
    wheel: dict[str, Any] = {}
    wheel |= {f"k{i}": wheel for i in range(3000)}
    torch.save(wheel, place / "evil.pt")
    return weights()


def bomb(path: Path, member: str, start: bytes, mebibytes: int) -> None:
    """A zip archive of one member: some bytes, and so many MiB of zeros, written as one MiB again and again."""
    press = zlib.compressobj(9, wbits=-15)
    first = press.compress(start) + press.flush(zlib.Z_FULL_FLUSH)
    zeros = press.compress(bytes(2**20)) + press.flush(zlib.Z_FULL_FLUSH)
    content = first + zeros * mebibytes + press.flush()
    sizes, name = (len(content), len(start) + mebibytes * 2**20), member.encode()
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, *sizes, len(name), 0) + name
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, *sizes, len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local) + len(content), 0)
    path.write_bytes(local + content + entry + end)


def million_members(path: Path, start: bytes = b"PK\3\4", name: bytes = b"a.npy") -> None:
    """A zip archive whose directory has 10^6 entries, all of one empty file."""
    n = 10**6
    local = struct.pack("<4s5H3I2H", start, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    size, where = len(entry) * n, len(local)
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, size, where)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, where + size, 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(local + entry * n + end)
