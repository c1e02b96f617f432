"""An array on disk that is filled block by block, with a checksum for each block of rows.

A .npy file with a table behind its data: for each block 2^32 plus the CRC-32 of its bytes, or 0 while it is not
written. So a file says of itself which of its rows are there, whoever wrote it and whenever it was stopped.
"""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np

from ldmlab.atomic import allocate
from ldmlab.damage import DamagedFile, reading

BLOCK = 128  # rows
_FOOTER = struct.Struct("<8s16sII")  # magic, key, rows per block, number of blocks
_MAGIC = b"ROWSCRC1"


class RowsFile:
    """One file of float16 rows. `key`, 16 characters, is that of the cache that it belongs to."""

    def __init__(self, path: Path, key: str, shape: tuple[int, ...]):
        header = BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False,
                     "shape": shape})
        self.path, self.shape, self._header = path, shape, header.getvalue()
        self._row = 2 * int(np.prod(shape[1:]))
        self.num_blocks = -(-shape[0] // BLOCK)
        self._table_at = len(self._header) + shape[0] * self._row
        self._footer = _FOOTER.pack(_MAGIC, key.encode(), BLOCK, self.num_blocks)

    @property
    def num_bytes(self) -> int:
        """The size of the whole file."""
        return self._table_at + 8 * self.num_blocks + len(self._footer)

    def rows(self, block: int) -> range:
        """The numbers of a block's rows."""
        return range(block * BLOCK, min((block + 1) * BLOCK, self.shape[0]))

    def create(self) -> None:
        """Make the file without any row, its space reserved on disk; DiskFull where that fails."""
        allocate(self.path, self.num_bytes)
        with open(self.path, "r+b") as file:
            file.write(self._header)
            file.seek(self.num_bytes - len(self._footer))
            file.write(self._footer)

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write the rows of a block, then its checksum."""
        raw = rows.tobytes()
        try:
            with open(self.path, "r+b") as file:  # not through a memory map, where a full disk ends the process
                file.seek(self._at(block))
                file.write(raw)
                file.seek(self._table_at + 8 * block)
                file.write(struct.pack("<Q", 1 << 32 | zlib.crc32(raw)))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def read(self, block: int) -> np.ndarray | None:
        """The rows of a block; None where they are not written or do not have their checksum, and for another file."""
        if not self._is_ours:
            return None
        try:
            with open(self.path, "rb") as file:
                file.seek(self._table_at + 8 * block)
                (stated,) = struct.unpack("<Q", file.read(8))
                file.seek(self._at(block))
                raw = file.read(len(self.rows(block)) * self._row)
        except FileNotFoundError:  # finished, or removed, by another process
            return None
        if stated != 1 << 32 | zlib.crc32(raw):
            return None
        return np.frombuffer(raw, np.float16).reshape(-1, *self.shape[1:])

    def move_to(self, path: Path) -> bool:
        """Rename the file if it has this key and shape; whether it was renamed."""
        if not self._is_ours:
            return False
        try:
            os.replace(self.path, path)
        except FileNotFoundError:  # another process was first
            return False
        return True

    def _at(self, block: int) -> int:
        return len(self._header) + block * BLOCK * self._row

    @property
    def _is_ours(self) -> bool:
        """Whether the file has this key and shape, with all of its rows or some."""
        try:
            with open(self.path, "rb") as file:
                header = file.read(len(self._header))
                file.seek(max(0, self.num_bytes - len(self._footer)))
                return header == self._header and file.read() == self._footer
        except OSError:
            return False


def open_rows(path: Path, key: str, num: int) -> tuple[np.ndarray, bool]:
    """The memory-mapped array of a complete file with `num` rows, and whether it has checksums, which then are right.

    Files of earlier versions have none. FileNotFoundError for a missing file, DamagedFile for a damaged or incomplete
    one, or one with another key or another number of rows.
    """
    with reading(path):
        array = np.load(path, mmap_mode="r")
        if array.dtype != np.float16 or array.ndim < 2 or array.shape[0] != num:
            raise DamagedFile(path, f"it holds {array.dtype} of shape {array.shape}, and should hold {num} rows")
        file = RowsFile(path, key, array.shape)
        if path.stat().st_size == file._table_at:  # a plain .npy
            return array, False
        if not file._is_ours:
            raise DamagedFile(path, "it is that of another first stage or other data, or its end is damaged")
        if bad := sum(file.read(block) is None for block in range(file.num_blocks)):
            raise DamagedFile(path, f"{bad} of its {file.num_blocks} blocks do not have the checksum that it states")
        return array, True
