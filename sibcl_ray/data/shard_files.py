"""Shards as Parquet files: numbers in columns, what they are as metadata, and a checksum of all of it."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor


def encode(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """A file of arrays (count, …), by column, and of what is said about them; the same bytes for the same content."""
    said: dict[str, Any] = {**about, "shapes": {name: list(array.shape[1:]) for name, array in arrays.items()}}
    table = pa.table({name: _column(array) for name, array in arrays.items()})
    said["sha256"] = _digest(table, said)
    table = table.replace_schema_metadata({"sibcl_ray": json.dumps(said, sort_keys=True)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def decode(data: bytes, columns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """What is said in a file, some of its columns, and whether its checksum is right; of damage any exception."""
    table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    about = json.loads((table.schema.metadata or {})[b"sibcl_ray"])
    whole = about.pop("sha256") == _digest(table, about)
    arrays = {name: _flat(table[name]).to_numpy().reshape(-1, *about["shapes"][name]) for name in columns}
    return about, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, whole


def _column(array: np.ndarray) -> pa.Array:
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    flat = pa.array(array.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, array[0].size) if array.ndim > 1 else flat


def _flat(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    return values.flatten() if pa.types.is_fixed_size_list(values.type) else values


def _digest(table: pa.Table, about: dict[str, Any]) -> str:
    """The checksum of a shard: of its metadata and of all its numbers."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in table.column_names:
        values = _flat(table[name])
        digest.update(f"{name} {values.type} {len(values)}".encode())
        digest.update(values.to_numpy())
    return digest.hexdigest()
