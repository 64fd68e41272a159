"""Columns of Parquet files as arrays."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sibcl_ray.problems.tabulated.tables import BadData, Stored, rows_at_once


def _opened(path: Path) -> pq.ParquetFile:
    # Through a buffer, so that a row group that does not fit in memory is read page by page.
    return pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True)


def names(path: Path, wanted: str) -> Iterable[str]:
    """The columns of a file."""
    with _opened(path) as file:
        return file.schema_arrow.names


def open_array(path: Path, name: str, title: str) -> Stored:
    """A column of a file."""
    with _opened(path) as file:
        if file.schema_arrow.names.count(name) > 1:
            raise BadData(f"{title} is there more than once; give every column a name of its own")
        rows = file.metadata.num_rows
        first = next(file.iter_batches(1, columns=[name]), None) if rows else None
        row = () if first is None else _dense(first.column(name), title, 0).shape[1:]
        at_once = rows_at_once(8 * math.prod(row))

    def read() -> Iterator[np.ndarray]:
        start = 0
        with _opened(path) as file:
            for batch in file.iter_batches(at_once, columns=[name]):
                block = _dense(batch.column(name), title, start)
                if block.shape[1:] != row:
                    raise BadData(f"{title} has shape {block.shape[1:]} at row {start:,}, and {row} before; mend it")
                yield block
                start += len(block)

    return Stored(title, rows, row, read)


_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_IMAGES = (
    "where these are encoded images, as Hugging Face's datasets store them, decode them, and store the pixels: "
    "np.stack([np.asarray(image) for image in images])"
)


def _dense(column: pa.Array, title: str, start: int, each: int = 1) -> np.ndarray:
    """Lists, however deep, as one array; ``start`` is the first row's number, ``each`` the entries of a row."""
    if pa.types.is_dictionary(column.type):  # a way of storing; the numbers are those that it stands for
        column = column.dictionary_decode()
    if column.null_count:
        empty = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        raise BadData(
            f"{title} has nothing at row {start + empty[0] // each:,}, counted from 0; fill in or remove such rows"
        )
    if isinstance(column.type, pa.BaseExtensionType):
        return _tensors(column.type, _dense(column.storage, title, start, each), title)
    if isinstance(column.type, _LISTS):
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        if len(odd := np.flatnonzero(lengths != lengths[:1])):
            raise BadData(
                f"{title} has {lengths[odd[0]]} values at row {start + odd[0] // each:,}, counted from 0, and "
                f"{lengths[0]} before; all rows must be of one length"
            )
        length = int(lengths[0]) if len(lengths) else 0
        inner = _dense(column.flatten(), title, start, each * max(1, length))
        return inner.reshape(len(column), length, *inner.shape[1:])
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if not any(is_number(column.type) for is_number in _NUMBERS):
        raise BadData(f"{title} holds values of type {str(column.type)[:80]}; {_advice(column.type)}")
    return column.to_numpy(zero_copy_only=False)


def _tensors(kind: pa.DataType, flat: np.ndarray, title: str) -> np.ndarray:
    """Rows in the shape that their type gives them; others stay as they are stored."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return flat
    rows, order = flat.reshape(len(flat), *kind.shape), list(kind.permutation or range(len(kind.shape)))
    if [order[axis] for axis in order] != list(range(len(order))):  # pyarrow writes the inverse of what Arrow says
        raise BadData(f"{title} has axes in the order {order}, which not all writers mean alike; store them in order")
    return rows.transpose(0, *(1 + axis for axis in order))


def _advice(kind: pa.DataType) -> str:
    fields = [kind.field(i).type for i in range(kind.num_fields)] if pa.types.is_struct(kind) else [kind]
    if any(is_bytes(inner) for inner in fields for is_bytes in _BYTES):
        return _IMAGES
    return "store numbers, or lists of numbers of one length"
