"""Folders of arrays to load, in every kind of file, and some changed."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

from sibcl_ray.problems.tabulated import BadData, load

few = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

TARGET_ONLY = """
name = "moments"
[target]
file = "data.npz"
inputs = "x"
labels = "y"
test = 30
[input]
units = "volt"
periodic = true
[label]
units = "volt"
[symmetry]
translation = true
point_group = true
"""
SURROGATE = '\n[surrogate]\nfile = "data.npz"\ninputs = "sx"\nlabels = "sy"\n'
UNLABELLED_TOO = '\n[unlabelled]\nfile = "data.npz"\ninputs = "u"\n'
ALL = TARGET_ONLY + SURROGATE + UNLABELLED_TOO
OWN_TEST = ALL.replace("test = 30\n", "") + '\n[test]\nfile = "data.npz"\ninputs = "tx"\nlabels = "ty"\n'


def labels_of(x):
    return np.stack([x.mean((-2, -1)), x.std((-2, -1))], -1)


def arrays(seed=0, side=8):
    """Inputs and labels of all roles."""
    rng = np.random.default_rng(seed)
    x, sx, u, tx = (rng.uniform(1, 2, (n, side, side)) * rng.uniform(1, 2, (n, 1, 1)) for n in (130, 70, 60, 40))
    return {"x": x, "y": labels_of(x), "sx": sx, "sy": labels_of(sx), "u": u, "tx": tx, "ty": labels_of(tx)}


def fill(folder, toml=ALL, file="data.npz", **changed):
    """A folder with the arrays, some of them changed, and what describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / file, **{**arrays(), **changed})
    (folder / "problem.toml").write_text(toml)
    return folder


def refusal(folder):
    """What is said of a folder that cannot be used."""
    with pytest.raises(BadData) as refused:
        load(folder)
    text = str(refused.value)
    assert isinstance(refused.value, ValueError) and "\n" not in text and 20 < len(text) < 500
    return text


# Kinds of files


def npz(path, **stored):
    np.savez(path, **stored)


def packed_npz(path, **stored):
    np.savez_compressed(path, **stored)


def npz_by_columns(path, **stored):
    np.savez(path, **{name: np.asfortranarray(array) for name, array in stored.items()})


def npz_of_the_other_end(path, **stored):
    np.savez(path, **{name: array.astype(">f8") for name, array in stored.items()})


def hdf5(path, **stored):
    with h5py.File(path, "w") as file:
        for name, array in stored.items():
            file[name] = array


def chunked_hdf5(path, **stored):
    with h5py.File(path, "w") as file:
        for name, array in stored.items():
            shape = (7, *array.shape[1:])
            file.create_dataset(f"deep/{name}", data=array, chunks=shape, compression="gzip", fletcher32=True)
            file[name] = h5py.SoftLink(f"/deep/{name}")


def parquet_of(column, **options):
    def write(path, **stored):
        pq.write_table(pa.table({name: column(array) for name, array in stored.items()}), path, **options)

    return write


def flat_lists(array):
    return pa.array(list(array.reshape(len(array), -1)))


def nested_lists(array):
    return pa.array(array.tolist())


def fixed_lists(array):
    return pa.FixedSizeListArray.from_arrays(array.ravel(), array[0].size)


def tensors(array):
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


WRITERS = [
    ("npz", npz),
    ("npz", packed_npz),
    ("npz", npz_by_columns),
    ("npz", npz_of_the_other_end),
    ("h5", hdf5),
    ("hdf5", chunked_hdf5),
    ("parquet", parquet_of(flat_lists)),
    ("parquet", parquet_of(nested_lists, row_group_size=7)),
    ("parquet", parquet_of(fixed_lists, compression="zstd")),
    ("parquet", parquet_of(tensors)),
]


def of_kind(folder, suffix, write):
    """The same arrays, those of each role in a file of their own."""
    folder.mkdir(exist_ok=True)
    a = arrays()
    for role, names in (("target", "x y"), ("surrogate", "sx sy"), ("unlabelled", "u")):
        write(folder / f"{role}.{suffix}", **{name: a[name] for name in names.split()})
    toml = ALL.replace("[input]", "[input]\nshape = [8, 8]")
    for role in ("target", "surrogate", "unlabelled"):
        toml = toml.replace(f'[{role}]\nfile = "data.npz"', f'[{role}]\nfile = "{role}.{suffix}"')
    (folder / "problem.toml").write_text(toml)
    return folder
