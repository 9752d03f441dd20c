"""Hostile files of data: safetensors, arrays, archives, images and tables. Importing it enters them into `CASES`."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hostile import Commands, Place, bomb, case, data, million_members, weights

PIXEL = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


# --- safetensors


def tensors(place: Place, header: Any, content: bytes = bytes(16), length: int | None = None) -> Commands:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    place.write("evil.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + content)
    return weights("evil.safetensors")


@case
def safetensors_long_header(place: Place) -> Commands:
    return tensors(place, b'{"w":' + json.dumps(PIXEL).encode() + b" " * 99_000_000 + b"}")


@case
def safetensors_million_tensors(place: Place) -> Commands:
    empty = b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return tensors(place, b"{" + b",".join(b'"%07d' % i + empty for i in range(1_000_000)) + b"}", b"")


@case
def safetensors_header_beyond(place: Place) -> Commands:
    return tensors(place, {"w": PIXEL}, length=2**20)


@case
def safetensors_header_of_exabytes(place: Place) -> Commands:
    return tensors(place, {"w": PIXEL}, length=2**63)


@case
def safetensors_overlapping(place: Place) -> Commands:
    return tensors(place, {"a": PIXEL, "b": PIXEL})


@case
def safetensors_hole(place: Place) -> Commands:
    return tensors(place, {"a": PIXEL, "b": {**PIXEL, "data_offsets": [32, 48]}}, bytes(48))


@case
def safetensors_negative(place: Place) -> Commands:
    return tensors(place, {"a": {**PIXEL, "data_offsets": [-16, 0]}})


@case
def safetensors_not_a_number(place: Place) -> Commands:
    return tensors(place, {"conv1.weight": PIXEL}, np.full(4, np.nan, np.float32).tobytes())


@case
def safetensors_twice(place: Place) -> Commands:
    one = json.dumps(PIXEL).encode()
    return tensors(place, b'{"w":' + one + b',"w":' + one + b"}")


@case
def safetensors_type(place: Place) -> Commands:
    return tensors(place, {"w": {**PIXEL, "dtype": "os.system"}})


@case
def safetensors_wrong_type(place: Place) -> Commands:
    return tensors(place, {"w": {**PIXEL, "dtype": "F64"}})


@case
def safetensors_huge_shape(place: Place) -> Commands:
    return tensors(place, {"w": {"dtype": "F32", "shape": [2**32, 2**32, 4], "data_offsets": [0, 16]}})


@case
def safetensors_deep(place: Place) -> Commands:
    return tensors(place, b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@case
def safetensors_description(place: Place) -> Commands:
    deep = "[" * 100_000
    return tensors(place, {"__metadata__": {"toughen": deep}, "w": PIXEL})


# --- arrays


def npz(place: Place, content: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Commands:
    with zipfile.ZipFile(place / "evil.npz", "w", kind) as archive:
        for name, member in content.items():
            archive.writestr(name, member)
    return data("evil.npz")


def npy(array: np.ndarray, *, header: bytes | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    if header is None:
        return file.getvalue()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + array.tobytes()


def objects(place: Place) -> bytes:
    array = np.empty(2, object)
    array[:] = [place.payload(), place.payload()]
    return npy(array)


@case
def npz_objects(place: Place) -> Commands:
    return npz(place, {"image.npy": objects(place), "label.npy": objects(place)})


@case
def npz_objects_for_labels(place: Place) -> Commands:
    images = npy(np.zeros((4, 8, 8, 3), np.uint8))
    return npz(place, {"image.npy": images, "label.npy": objects(place), "classes.npy": objects(place)})


@case
def npz_pickles(place: Place) -> Commands:
    return npz(place, {"image.npy": pickle.dumps(place.payload()), "label.npy": pickle.dumps(place.payload())})


@case
def npy_objects(place: Place) -> Commands:
    place.write("evil.npy", objects(place))
    for name in ("labels", "gaussian_noise", "fog"):
        place.write(f"evil/{name}.npy", objects(place))
    place.run()
    corrupted = ["evaluate", "run", "--suite", "corruptions", "--published", "evil"]
    return [*data("evil.npy")[:2], *data("evil")[:1], corrupted]


@case
def npz_header_that_is_a_program(place: Place) -> Commands:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': open({str(place.canary)!r}, 'w')}}".encode()
    member = npy(np.zeros(4, np.uint8), header=header)
    return npz(place, {"image.npy": member, "label.npy": member})


@case
def npz_header_deep(place: Place) -> Commands:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + b"(" * 5000 + b"}"
    member = npy(np.zeros(4, np.uint8), header=header)
    return npz(place, {"image.npy": member, "label.npy": member})


@case
def npz_shape_beyond(place: Place) -> Commands:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 32, 32, 3)}"
    images = npy(np.zeros(12, np.uint8), header=header)
    return npz(place, {"image.npy": images, "label.npy": npy(np.zeros(4, np.int64))})


@case
def npz_shape_negative(place: Place) -> Commands:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 3)}"
    images = npy(np.zeros(192, np.uint8), header=header)
    return npz(place, {"image.npy": images, "label.npy": npy(np.zeros(1, np.int64))})


@case
def npz_bomb(place: Place) -> Commands:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (349525, 32, 32, 3)}"
    bomb(place / "evil.npz", "image.npy", npy(np.zeros(0, np.uint8), header=header), 1024)
    return data("evil.npz")


@case
def npz_million_members(place: Place) -> Commands:
    million_members(place / "evil.npz")
    return data("evil.npz")


@case
def npz_names(place: Place) -> Commands:
    member = npy(np.zeros((4, 8, 8, 3), np.uint8))
    return npz(place, {"../../image.npy": member, "/etc/label.npy": member, "image\x1b[2J\n.npy": member})


# --- archives


@case
def zip_bomb(place: Place) -> Commands:
    bomb(place / "evil.zip", "train/../../x.png", b"", 4000)
    return data("evil.zip")


def tarred(place: Place, members: list[tuple[str, bytes, str, int]]) -> Commands:
    """A shard of (type, name, link, size); the content is no image."""
    (place / "evil").mkdir(exist_ok=True)
    with tarfile.open(place / "evil/train-0.tar", "w") as archive:
        for name, kind, link, size in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, size
            content = (b"7" if name.endswith("cls") else pickle.dumps(place.payload())).ljust(size, b"\0")
            archive.addfile(info, io.BytesIO(content) if size else None)
    return [*data("evil"), *data("evil/train-0.tar")[:1]]


@case
def tar_above(place: Place) -> Commands:
    return tarred(place, [("../../x.png", tarfile.REGTYPE, "", 99), ("../../x.cls", tarfile.REGTYPE, "", 1)])


@case
def tar_absolute(place: Place) -> Commands:
    name = str(place.folder.parent / "x")
    return tarred(place, [(f"{name}.png", tarfile.REGTYPE, "", 99), (f"{name}.cls", tarfile.REGTYPE, "", 1)])


@case
def tar_links(place: Place) -> Commands:
    links = [("a.png", tarfile.SYMTYPE, "../../secret", 0), ("b.png", tarfile.LNKTYPE, "../../secret", 0)]
    return tarred(place, [*links, ("a.cls", tarfile.SYMTYPE, "../../secret", 0)])


@case
def tar_devices(place: Place) -> Commands:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    return tarred(place, [(f"{i}.{end}", kind, "", 0) for i, kind in enumerate(kinds) for end in ("png", "cls")])


@case
def tar_size_beyond(place: Place) -> Commands:
    tarred(place, [("a.png", tarfile.REGTYPE, "", 99), ("a.cls", tarfile.REGTYPE, "", 1)])
    header = bytearray((place / "evil/train-0.tar").read_bytes())
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"size": "9" * 30}
    place.write("evil/train-0.tar", info.tobuf(tarfile.PAX_FORMAT) + bytes(header))
    return data("evil")


@case
def tar_sparse(place: Place) -> Commands:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x", "path": "\0"}
    place.write("evil/train-0.tar", info.tobuf(tarfile.PAX_FORMAT) + bytes(10240))
    return data("evil")


@case
def tar_of_gzip_bomb(place: Place) -> Commands:
    press = zlib.compressobj(9, wbits=31)
    info = tarfile.TarInfo("a.bin")
    info.size = 2**33
    parts = [press.compress(info.tobuf())]
    # A gzip file may be several, one after the other.
    zeros = zlib.compressobj(9, wbits=31)
    more = zeros.compress(bytes(2**26)) + zeros.flush()
    place.write("evil.tar.gz", b"".join([*parts, press.flush(), more * 128]))
    return data("evil.tar.gz")


# --- images


def images(place: Place, content: bytes, name: str = "a.png") -> Commands:
    for number in range(5):
        place.write(f"evil/{number % 2}/{number}-{name}", content)
    return data("evil")


def png(width: int, height: int, rows: int, kind: int = 2) -> bytes:
    """A PNG of black rows, or of as many of them as are wanted."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    press = zlib.compressobj(9)
    lines = [bytes((1 + width * {2: 3, 6: 4}[kind]) * 100)] * 2
    first, again = (press.compress(some) + press.flush(zlib.Z_FULL_FLUSH) for some in lines)
    # The sum at its end is wrong; nobody comes so far.
    pixels = first + again * (rows // 100 - 1) + press.flush()
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@case
def png_of_gigapixels(place: Place) -> Commands:
    return images(place, png(60_000, 60_000, 100))


@case
def png_of_many_pixels(place: Place) -> Commands:
    return images(place, png(11_000, 11_000, 11_000, 6))


@case
def jpeg_cut_short(place: Place) -> Commands:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return images(place, file.getvalue()[:-200], "a.jpg")


@case
def gif_called_png(place: Place) -> Commands:
    return images(place, b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768) + b",")


@case
def postscript_called_png(place: Place) -> Commands:
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({place.canary}) (w) file\n%%EOF\n"
    return images(place, text.encode())


@case
def pickles_called_png(place: Place) -> Commands:
    return images(place, pickle.dumps(place.payload()), "a\n\x1b[2J<script>.png")


# --- tables


@case
def parquet_nonsense(place: Place) -> Commands:
    place.write("evil/train-0.parquet", b"PAR1" + pickle.dumps(place.payload()) * 9 + struct.pack("<I", 200) + b"PAR1")
    return data("evil")


@case
def parquet_of_pickles(place: Place) -> Commands:
    (place / "evil").mkdir()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": pickle.dumps(place.payload()), "path": "../../../../etc/hostname"}] * 9
    about = {"info": {"features": {"image": {"_type": "toughen_canary.Net"}, "label": {"_type": "os.system"}}}}
    schema = pa.schema({"image": kind, "label": pa.int64()}).with_metadata({"huggingface": json.dumps(about)})
    table = pa.Table.from_arrays([pa.array(rows, kind), pa.array([0, 1, 2] * 3)], schema=schema)
    pq.write_table(table, place / "evil/train-0.parquet")
    return data("evil")


@case
def parquet_of_rows(place: Place) -> Commands:
    (place / "evil").mkdir()
    labels = pa.table({"image": pa.nulls(2**22, pa.binary()), "label": pa.array(np.zeros(2**22, np.int64))})
    with pq.ParquetWriter(place / "evil/train-0.parquet", labels.schema, compression="zstd") as writer:
        for _ in range(16):
            writer.write_table(labels)
    return data("evil")
