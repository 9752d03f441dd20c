"""An .npz file as large as anybody's that takes next to nothing of the disk, by numpy and the standard library."""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FULL = 2**32 - 1


def header_of(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def write_sparse(path: Path, shape: tuple[int, ...], labels: np.ndarray, planted: Mapping[int, np.ndarray]) -> None:
    """An .npz file of `image` and `label` as numpy writes large ones (zip64).

    Args:
        path: the file.
        shape: (N, H, W, C) of the images, which are a hole in the file but for some of them.
        labels: (N,) uint8.
        planted: images by their row.
    """
    directory, size = b"", int(np.prod(shape[1:]))
    lengths = {"image.npy": shape[0] * size, "label.npy": shape[0]}
    headers = {"image.npy": header_of(shape), "label.npy": header_of(labels.shape)}
    with path.open("wb") as file:
        for name, header in headers.items():
            at, total = file.tell(), len(header) + lengths[name]
            # Nobody compares the images' checksum, for that takes minutes.
            crc = zlib.crc32(labels.tobytes(), zlib.crc32(header)) if name == "label.npy" else 0
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 33, crc, FULL, FULL, len(name), 20))
            file.write(name.encode() + struct.pack("<HHQQ", 1, 16, total, total) + header)
            start = file.tell()
            if name == "label.npy":
                file.write(labels.tobytes())
            for row, image in planted.items() if name == "image.npy" else ():
                file.seek(start + row * size)
                file.write(image.tobytes())
            file.seek(start + lengths[name])
            entry = (b"PK\1\2", 45, 45, 0, 0, 0, 33, crc, FULL, FULL, len(name), 28, 0, 0, 0, 0, FULL)
            directory += struct.pack("<4s6H3L5H2L", *entry) + name.encode()
            directory += struct.pack("<HHQQQ", 1, 24, total, total, at)
        at = file.tell()
        file.write(directory)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(directory), at))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, at + len(directory), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(directory), FULL, 0))
