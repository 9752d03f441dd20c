"""Hostile tables of labels, idx and arrow files. Importing it enters them into `CASES`."""

import gzip
import json
import struct

import numpy as np
import pyarrow as pa
from PIL import Image

from hostile import Commands, Place, case, data


def pictures(place: Place, count: int = 9) -> None:
    (place / "evil/images").mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(place / f"evil/images/{number}.png")


@case
def table_of_one_line(place: Place) -> Commands:
    pictures(place)
    place.write("evil/labels.csv", b"filename,label\n" + b"0" * 2**27)
    return data("evil")


@case
def table_of_a_million_columns(place: Place) -> Commands:
    pictures(place)
    place.write("evil/labels.csv", b"," * 1_000_000 + b"filename\n" + b"," * 1_000_000 + b"0.png\n")
    return data("evil")


@case
def table_of_another_place(place: Place) -> Commands:
    pictures(place)
    place.write("evil/labels.csv", b"filename,label\n../../../../../etc/hostname,0\n/etc/passwd,1\n0.png,0\n")
    return data("evil")


@case
def table_of_a_huge_label(place: Place) -> Commands:
    pictures(place)
    rows = "".join(f"{number}.png,{10**9 if number else 0}\n" for number in range(9))
    place.write("evil/labels.csv", b"filename,label\n" + rows.encode())
    return data("evil")


@case
def table_of_an_endless_number(place: Place) -> Commands:
    pictures(place)
    place.write("evil/labels.csv", b"filename,label\n0.png,0\n1.png," + b"9" * 5000 + b"\n")
    return data("evil")


def idx(place: Place, shape: tuple[int, ...], content: bytes, *, packed: bool = False) -> Commands:
    head = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
    ending = ".gz" if packed else ""
    body = head + content
    place.write(f"evil/train-images-idx3-ubyte{ending}", gzip.compress(body) if packed else body)
    labels = bytes((0, 0, 8, 1)) + struct.pack(">I", 9) + bytes(range(9))
    place.write("evil/train-labels-idx1-ubyte", labels)
    return data("evil")


@case
def idx_of_exabytes(place: Place) -> Commands:
    return idx(place, (2**32 - 1, 2**32 - 1, 2**32 - 1), b"")


@case
def idx_bomb(place: Place) -> Commands:
    return idx(place, (2**12, 2**9, 2**9), bytes(2**30), packed=True)


@case
def idx_that_goes_on(place: Place) -> Commands:
    return idx(place, (9, 8, 8), bytes(2**28), packed=True)


def arrow(place: Place, rows: list[object], about: object = None) -> bytes:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    metadata = {"huggingface": json.dumps(about)} if about else None
    schema = pa.schema({"image": kind, "label": pa.int64()}).with_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table({"image": rows, "label": [n % 3 for n in range(len(rows))]}, schema=schema))
    return sink.getvalue().to_pybytes()


@case
def arrow_outside(place: Place) -> Commands:
    content = arrow(place, [{"bytes": b"01234", "path": None}, {"bytes": b"5678", "path": None}])
    inside, outside = struct.pack("<3i", 0, 5, 9), struct.pack("<3i", 0, 5, 2**30)
    place.write("evil/train.arrow", content.replace(inside, outside))
    return data("evil")


@case
def arrow_of_endless_files(place: Place) -> Commands:
    place.write("evil/train.arrow", arrow(place, [{"bytes": None, "path": "/dev/zero"}] * 9))
    return data("evil")


@case
def arrow_of_types(place: Place) -> Commands:
    about = {"info": {"features": {"image": {"_type": "toughen_canary.Net"}, "label": {"_type": "os.system"}}}}
    place.write("evil/train.arrow", arrow(place, [{"bytes": b"0", "path": None}] * 9, about))
    return data("evil")


@case
def saved_elsewhere(place: Place) -> Commands:
    state = {"_data_files": [{"filename": "../../../../../../dev/zero"}], "_fingerprint": "0", "_split": None}
    state |= {"_format_type": None, "_format_kwargs": {}, "_format_columns": None, "_output_all_columns": False}
    place.write("evil/state.json", json.dumps(state).encode())
    place.write("evil/dataset_info.json", b"{}")
    return data("evil")


@case
def saved_deep(place: Place) -> Commands:
    place.write("evil/dataset_dict.json", b'{"splits":' + b"[" * 100_000)
    return data("evil")
