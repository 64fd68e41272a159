"""What files say of their own numbers is applied, and what cannot be read is refused for the true cause."""

import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from decimal import Decimal

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from folders import TARGET_ONLY, arrays, fill, refusal

from sibcl_ray.problems.tabulated import load

A = arrays()
X, Y = A["x"], A["y"]
ROWS = len(X)


def described(folder, file="data.h5", inputs="x", labels="y", said=""):
    """A folder whose description names a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problem.toml").write_text(
        f'name = "files"\n[target]\nfile = "{file}"\ninputs = "{inputs}"\nlabels = "{labels}"\ntest = 30\n{said}'
    )
    return folder


def everything(problem):
    """All target inputs and labels, in the order of the file."""
    ((_, sample, labels),) = problem.shards("target", 0, [0], problem.available["target"])
    ((_, tested, more),) = problem.shards("test", 0, [0], problem.available["test"])
    order = np.argsort(np.concatenate([sample.parameters["row"], tested.parameters["row"]]))
    return np.concatenate([sample.inputs, tested.inputs])[order], np.concatenate([labels, more])[order]


# The description


@pytest.mark.parametrize(
    "written",
    [
        b"\xef\xbb\xbf" + TARGET_ONLY.encode(),
        b"\xef\xbb\xbf" + TARGET_ONLY.replace("\n", "\r\n").encode(),
        TARGET_ONLY.replace("\n", "\r\n").encode(),
    ],
    ids=["mark", "mark of Windows", "lines of Windows"],
)
def test_a_description_of_any_editor_is_read(written, tmp_path):
    fill(tmp_path)
    (tmp_path / "problem.toml").write_bytes(written)
    assert load(tmp_path).name == "moments"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_description_in_two_bytes_a_letter_is_refused(encoding, tmp_path):
    fill(tmp_path)
    (tmp_path / "problem.toml").write_bytes(TARGET_ONLY.strip().encode(encoding))
    assert re.search(r"problem.toml is UTF-16, as PowerShell's > writes .* save it as UTF-8", refusal(tmp_path))


# What HDF5 says of its numbers


def stored(**attributes):
    """Inputs as some datasets have them, with attributes."""

    def write(file, values):
        dataset = file.create_dataset("x", data=values)
        dataset.attrs.update(attributes)
        file["y"] = Y

    return write


COUNTS = np.round((X - 2) / 0.0001).astype("i2")
BYTES = (X * 60).astype("u1")
PACKED = {"scale_factor": 1e-4, "add_offset": 2.0}
I2 = np.int16
UNPACKED = {
    "scale and offset": (COUNTS, PACKED, COUNTS * 1e-4 + 2.0),
    "one in a list": (COUNTS, {"scale_factor": [1e-4], "add_offset": [2.0]}, COUNTS * 1e-4 + 2.0),
    "scale": (COUNTS, {"scale_factor": np.float32(0.5)}, COUNTS * 0.5),
    "offset of floats": (X.astype("f4"), {"add_offset": -1.5}, X.astype("f4").astype("f8") - 1.5),
    "unsigned": (BYTES.view("i1"), {"_Unsigned": "true", "scale_factor": 0.1}, BYTES * 0.1),
    "unsigned, filled": (BYTES.view("i1"), {"_Unsigned": b"true", "_FillValue": np.int8(-1)}, BYTES),
    "signed": ((X * 60 - 120).astype("i1").view("u1"), {"_Unsigned": "false"}, (X * 60 - 120).astype("i1")),
    "a fill value that is nowhere": (X, {"_FillValue": -999.0, "missing_value": [1e30, -1.0]}, X),
    "NaN for a fill value": (X, {"_FillValue": np.nan}, X),
    "within its range": (COUNTS, {"valid_range": I2([-32767, 32767]), "valid_min": I2(-32767)}, COUNTS),
    "within its range, unpacked": (COUNTS, PACKED | {"valid_range": [0.9, 4.1]}, COUNTS * 1e-4 + 2.0),
    "at the limit in float32": (np.minimum(X, 3.3).astype("f4"), {"valid_max": 3.3}, np.minimum(X, 3.3).astype("f4")),
    "other words": (X, {"units": "K", "fill_value": "none", "long_name": "x"}, X),
}  # fmt: skip


@pytest.mark.parametrize(("values", "attributes", "meant"), UNPACKED.values(), ids=UNPACKED)
def test_numbers_are_unpacked(values, attributes, meant, tmp_path):
    with h5py.File(described(tmp_path) / "data.h5", "w") as file:
        stored(**attributes)(file, values)
    inputs, labels = everything(load(tmp_path))
    assert np.array_equal(inputs, np.asarray(meant, np.float64).astype(np.float32))
    assert np.array_equal(labels, Y.astype(labels.dtype))


def test_labels_are_unpacked_in_float64(tmp_path):
    """An offset that float32 cannot hold beside the label's deviation."""
    counts = np.round((Y - 2) / 1e-4).astype("i4")
    with h5py.File(described(tmp_path, said="[label]\noffset = -97208.0\nscale = 0.5\n") / "data.h5", "w") as file:
        file["x"], file["y"] = X, counts
        file["y"].attrs.update({"scale_factor": 1e-4, "add_offset": -97208.125})
    _, labels = everything(problem := load(tmp_path))
    assert labels.dtype == np.float64 and np.allclose((labels - problem.offset) * 0.5, counts * 1e-4 - 0.125, atol=1e-9)


def lost(values, row, value):
    values = values.copy()
    values[row, 1, 2] = value
    return values


MISSING = {
    "fill value": (lost(COUNTS, 7, -32767), {"_FillValue": I2(-32767)}, "by _FillValue = -32767.*1 of 130 .*: 7"),
    "fill value, packed": (lost(COUNTS, 7, 9), {"_FillValue": I2(9), "scale_factor": 0.1}, "_FillValue = 9.*: 7"),
    "one of several": (lost(X, 5, -888.0), {"missing_value": [-999.0, -888.0]}, "missing_value = .-999.0, -888.0.*: 5"),
    "rounded to float32": (lost(X.astype("f4"), 5, -999.9), {"missing_value": -999.9}, "missing_value = -999.9.*: 5"),
    "of the other sign": (
        lost(BYTES, 3, 255).view("i1"),
        {"_FillValue": np.int8(-1), "_Unsigned": "true"},
        "_FillValue = -1.*: 3",
    ),
    "above": (lost(COUNTS, 8, 31000), {"valid_max": I2(30000)}, "valid_max = 30000.*: 8"),
    "below": (lost(X, 8, -5.0), {"valid_min": 0.0}, "valid_min = 0.0.*: 8"),
    "out of range": (lost(COUNTS, 8, -31000), PACKED | {"valid_range": I2([-30000, 30000])}, "-30000, 30000.*: 8"),
    "out of range, unpacked": (lost(COUNTS, 8, -31000), PACKED | {"valid_range": [0.0, 9.0]}, "= .0.0, 9.0.*: 8"),
    "two reasons": (
        lost(lost(X, 8, -5.0), 2, -999.0),
        {"valid_min": 0.0, "_FillValue": -999.0},
        "_FillValue = -999.0, valid_min = 0.0. in 2 of .*: 2, 8",
    ),
    "another's name": (lost(X, 4, -999.0), {"FillValue": -999.0}, "by FillValue = -999.0.*: 4"),
    "text": (X, {"missing_value": "-999"}, "attribute missing_value = -999; make it a number"),
    "no scale": (COUNTS, {"scale_factor": 0.0}, "attribute scale_factor = 0.0; make it one finite number"),
    "two scales": (COUNTS, {"scale_factor": [0.1, 0.2]}, r"scale_factor = \[0.1, 0.2\]; make it one"),
    "offset of NaN": (COUNTS, {"add_offset": np.nan}, "add_offset = nan; make it one finite"),
    "range of three": (COUNTS, {"valid_range": I2([0, 1, 2])}, "valid_range = .* make it two numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "attributes", "says"), MISSING.values(), ids=MISSING)
def test_what_is_missing_by_an_attribute_is_refused(values, attributes, says, tmp_path):
    with h5py.File(described(tmp_path) / "data.h5", "w") as file:
        stored(**attributes)(file, values)
    assert re.search(says, refusal(tmp_path))


def filled(value, where="x"):
    """A dataset of which one row was never written, in a chunk that was."""

    def write(path):
        with h5py.File(path, "w") as file:
            for name, values in (("x", X), ("y", Y)):
                chosen = value if name == where else None
                data = file.create_dataset(name, values.shape, "f4", chunks=(10, *values.shape[1:]), fillvalue=chosen)
                for row in range(ROWS):
                    if name != where or row != 11:
                        data[row] = values[row]

    return write


@pytest.mark.parametrize("value", [-999.0, 1e20, 9.969209968386869e36, -32768.0])
def test_rows_that_have_but_a_fill_value_are_refused(value, tmp_path):
    filled(value)(described(tmp_path) / "data.h5")
    assert re.search(r"by its HDF5 fill value .* in 1 of 130 rows .*: 11\)", refusal(tmp_path))
    filled(value, "y")(tmp_path / "data.h5")
    assert re.search(r"array 'y', has missing values \(by its HDF5 fill value .*: 11\)", refusal(tmp_path))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_background_is_no_fill_value(value, tmp_path):
    """What is often written and often chosen, as one is for vacuum."""
    filled(value)(described(tmp_path) / "data.h5")
    inputs, _ = everything(load(tmp_path))
    assert (inputs[11] == value).all()


@pytest.mark.parametrize("mark", [1e20, -1e20, np.float32(9.96921e36), np.finfo(np.float32).max])
@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_numbers_that_stand_for_none_are_refused(mark, name, kind, tmp_path):
    """Of masked arrays, of netCDF and of rasters, in a format that cannot say so."""
    values = {"x": X.astype(kind), "y": Y.astype(kind)}
    values[name][6].flat[1] = mark
    assert re.search(
        r"1e\+20, .* mark missing values, in 1 of 130 rows .*: 6\)", refusal(fill(tmp_path, TARGET_ONLY, **values))
    )


def test_numbered_datasets_say_it_each_for_itself(tmp_path):
    def write(last):
        with h5py.File(described(tmp_path, inputs="x/*", labels="y/*") / "data.h5", "w") as file:
            for row in range(ROWS):
                counts = lost(COUNTS, 7, -9999)[row] if last else COUNTS[row]
                file[f"x/{row + 1}"], file[f"y/{row + 1}"] = counts, Y[row]
                file[f"x/{row + 1}"].attrs.update({"scale_factor": 1e-4 * (1 + row), "_FillValue": I2(-9999)})

    write(last=False)
    scales = 1e-4 * (1 + np.arange(ROWS))[:, None, None]
    assert np.array_equal(everything(load(tmp_path))[0], (COUNTS * scales).astype(np.float32))
    write(last=True)
    assert re.search(r"by _FillValue = -9999.*1 of 130 datasets \(numbers: 8\)", refusal(tmp_path))


# Axes in reverse


def of_matlab(path, marked=True, userblock=False, **stored):
    """What MATLAB's save -v7.3 makes of arrays."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in stored.items():
            file[name] = np.asarray(values).T
            if marked:
                file[name].attrs["MATLAB_class"] = np.bytes_("double")
    if userblock:
        with path.open("r+b") as file:
            file.write(
                b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Thu Jan  1 00:00:00 1970 HDF5 schema 1.00 ."
            )
    return path


REVERSED = r"MATLAB wrote this file, and its axes come in reverse, here \(.*\): .* permute\(X, ndims\(X\):-1:1\)"
MATLABS = {
    "mat": ("data.mat", {"x": X, "y": Y}, {}),
    "h5": ("data.h5", {"x": X, "y": Y}, {}),
    "by its first bytes": ("data.mat", {"x": X, "y": Y}, {"marked": False, "userblock": True}),
    "columns": ("data.mat", {"x": X, "y": Y[:, :1]}, {}),
    "rows": ("data.mat", {"x": X, "y": Y[:, 0][None]}, {}),
    "as many samples as pixels": ("data.mat", {"x": X[:8], "y": Y[:8, :1]}, {}),
    "as many samples as pixels, a row of labels": ("data.mat", {"x": X[:8], "y": Y[:8, 0][None]}, {}),
    "as many numbers as pixels": ("data.mat", {"x": X, "y": np.tile(Y, 4)}, {}),
}


@pytest.mark.parametrize(("file", "values", "how"), MATLABS.values(), ids=MATLABS)
def test_axes_that_matlab_reverses_are_named(file, values, how, tmp_path):
    of_matlab(described(tmp_path, file) / file, **how, **values)
    assert re.search(REVERSED, refusal(tmp_path))


@pytest.mark.parametrize(
    ("mark", "advice"), [("rhdf5-NA.OK", r"R wrote .* aperm\(X\)"), ("OCTAVE_NEW_FORMAT", "Octave wrote .* permute")]
)
def test_others_that_reverse_axes_are_named_too(mark, advice, tmp_path):
    with h5py.File(of_matlab(described(tmp_path) / "data.h5", marked=False, x=X, y=Y), "a") as file:
        file["x"].attrs[mark] = 1
    assert re.search(advice, refusal(tmp_path))


def test_unlabelled_inputs_of_matlab_are_named(tmp_path):
    said = '[unlabelled]\nfile = "more.mat"\ninputs = "u"\n'
    with h5py.File(described(tmp_path, said=said) / "data.h5", "w") as file:
        file["x"], file["y"] = X, Y
    of_matlab(tmp_path / "more.mat", u=A["u"])
    assert re.search(r"\(8, 60\) and .*'x', has \(8, 8\).*" + REVERSED, refusal(tmp_path))
    of_matlab(tmp_path / "more.mat", u=A["u"][:8])
    assert re.search("first or the last axis; " + REVERSED, refusal(tmp_path))


def test_axes_that_were_put_right_in_matlab_are_read(tmp_path):
    """By permute, as the refusal says: nothing but the first axis can be rows."""
    of_matlab(described(tmp_path, "data.mat") / "data.mat", x=np.transpose(X, (2, 1, 0)), y=Y[:, :1].T)
    assert np.array_equal(everything(load(tmp_path))[0], X.astype(np.float32))


@pytest.mark.parametrize("rows", [8, ROWS])
def test_where_nothing_tells_the_order_a_note_does(rows, tmp_path, capsys):
    x = X[:8] if rows == 8 else np.concatenate([X] * 1)
    with h5py.File(described(tmp_path) / "data.h5", "w") as file:
        file["x"], file["y"] = x, Y[:rows]
    (tmp_path / "problem.toml").write_text((tmp_path / "problem.toml").read_text().replace("test = 30", "test = 3"))
    notes = []
    load(tmp_path, notes.append)
    assert len(notes) == (rows == 8)
    assert all("of shape (8, 8, 8) is read with rows along its first axis" in note for note in notes)
    load(tmp_path)
    assert capsys.readouterr().err.startswith("note: ") == (rows == 8)


def test_a_cube_of_numpy_needs_no_note(tmp_path):
    notes = []
    load(fill(tmp_path, TARGET_ONLY.replace("test = 30", "test = 3"), x=X[:8], y=Y[:8]), notes.append)
    assert not notes


def cells(file):
    file["#refs#/a"] = X[0]
    file.create_dataset("x", (ROWS, 1), h5py.ref_dtype)[:] = file["#refs#/a"].ref


def characters(file):
    file["x"] = np.zeros((ROWS, 8, 8), "u2")
    file["x"].attrs["MATLAB_class"] = np.bytes_("char")


def table(file):
    file["x"] = np.zeros((1, 6), "u4")
    file["x"].attrs["MATLAB_class"] = np.bytes_("table")


def nothing(file):
    file["x"] = np.array([0, 8], "u8")
    file["x"].attrs.update({"MATLAB_class": np.bytes_("double"), "MATLAB_empty": np.uint8(1)})


def complex_of_matlab(file):
    file["x"] = np.zeros((ROWS, 8, 8), [("real", "f8"), ("imag", "f8")])


def regions(file):
    file.create_dataset("x", (ROWS,), h5py.regionref_dtype)


def ragged(file):
    file.create_dataset("x", (ROWS,), h5py.vlen_dtype(np.float32))


def fixed_text(file):
    file["x"] = np.array([b"ab"] * ROWS)


def opaque(file):
    file.create_dataset("x", data=np.zeros((ROWS, 8, 8), "V2"))


NO_NUMBERS = [
    (cells, r"holds references to other datasets, as cell arrays of MATLAB do; .*cat\(3, C"),
    (regions, "holds references to other datasets"),
    (characters, "holds what MATLAB calls a char; store numbers"),
    (table, "holds what MATLAB calls a table; store numbers"),
    (nothing, "is empty; there is nothing to learn"),
    (complex_of_matlab, "holds complex numbers; store real and imaginary parts"),
    (ragged, "holds rows of different lengths"),
    (fixed_text, "holds text"),
    (opaque, "2-byte values without a type, which is what bfloat16 becomes"),
]


@pytest.mark.parametrize(("write", "says"), NO_NUMBERS)
def test_what_are_no_numbers_in_hdf5_is_named(write, says, tmp_path):
    with h5py.File(described(tmp_path) / "data.h5", "w") as file:
        file["y"] = Y
        write(file)
    assert re.search(says, refusal(tmp_path))


def test_values_may_be_arrays_themselves(tmp_path):
    with h5py.File(described(tmp_path) / "data.h5", "w") as file:
        file.create_dataset("x", (ROWS,), np.dtype(("f4", (8, 8))))[:] = X.astype("f4")
        file["y"] = Y
    assert np.array_equal(everything(load(tmp_path))[0], X.astype("f4"))


# Filters, locks and permissions


def filtered(path, code, content, mask=0):
    """A file with a chunk that went through a filter, or was left out of it."""
    with h5py.File(path, "w") as file:
        pipeline = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        pipeline.set_chunk(X.shape)
        pipeline.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(X.shape)
        data = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F64LE, space, pipeline)
        data.write_direct_chunk((0, 0, 0), content, mask)
        file["y"] = Y


FILTERS = [
    (32015, r"filter 32015 \(Zstandard\), which is missing here: pip install hdf5plugin"),
    (32001, r"filter 32001 \(Blosc\), .* pip install hdf5plugin"),
    (32026, r"filter 32026 \(Blosc2\), .* pip install hdf5plugin"),
    (305, r"filter 305 \(of no known name\), which is missing here: install its plug-in, or write .*h5repack"),
]


@pytest.mark.parametrize(("code", "says"), FILTERS)
def test_a_filter_that_is_missing_is_named(code, says, tmp_path, monkeypatch):
    if h5py.h5z.filter_avail(code):
        pytest.skip("the filter is here")
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    filtered(described(tmp_path) / "data.h5", code, X.tobytes()[:5000])
    assert re.search(says, refusal(tmp_path))


def test_a_filter_that_was_not_applied_is_not_missed(tmp_path):
    filtered(described(tmp_path) / "data.h5", 305, X.tobytes(), mask=1)
    assert np.array_equal(everything(load(tmp_path))[0], X.astype(np.float32))


def test_with_its_plug_in_a_filter_is_read(tmp_path):
    """In a process that has not imported it."""
    pytest.importorskip("hdf5plugin", reason="pip install hdf5plugin, to read what it compresses")
    write = """
import sys, h5py, hdf5plugin, numpy as np
with np.load(sys.argv[1]) as arrays, h5py.File(sys.argv[2], "w") as file:
    file.create_dataset("x", data=arrays["x"], chunks=(10, 8, 8), **hdf5plugin.Zstd())
    file["y"] = arrays["y"]
"""
    np.savez(tmp_path / "arrays.npz", x=X, y=Y)
    described(tmp_path)
    names = [str(tmp_path / name) for name in ("arrays.npz", "data.h5")]
    subprocess.run([sys.executable, "-c", write, *names], check=True, timeout=60)
    read = "import sys; from sibcl_ray.problems.tabulated import load; print(load(sys.argv[1]).available['target'])"
    done = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path)], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "100\n"


def said_elsewhere(folder, **environment):
    """What another process says of a folder, "read" if it reads it."""
    program = """
import sys
from sibcl_ray.problems.tabulated import BadData, load
try:
    load(sys.argv[1])
except BadData as refused:
    print(refused)
else:
    print("read")
"""
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    ).stdout


WRITER = """
import h5py, sys
import numpy as np
path, mode = sys.argv[1:]
arrays = np.load(path + ".npz")
with h5py.File(path, "w", libver="latest" if mode == "swmr" else "earliest") as file:
    file["x"], file["y"] = arrays["x"], arrays["y"]
    file.flush()
    if mode == "swmr":
        file.swmr_mode = True
    if mode == "appending":
        file.create_dataset("more", (10,), "f4", maxshape=(None,), chunks=(10,))
        file.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("mode", ["w", "appending", "swmr"])
def test_a_file_that_is_being_written_is_no_damage(mode, tmp_path):
    path = described(tmp_path) / "data.h5"
    np.savez(f"{path}.npz", x=X, y=Y)
    command = [sys.executable, "-c", WRITER, str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        said = refusal(tmp_path)
        assert "'data.h5' is open for writing elsewhere" in said and "whole" not in said
        if mode != "swmr":
            assert "HDF5_USE_FILE_LOCKING" in said
        if mode == "w":
            assert said_elsewhere(tmp_path, HDF5_USE_FILE_LOCKING="FALSE") == "read\n"
        writer.stdin.close()
    load(tmp_path)


def test_a_file_that_a_program_left_open_is_no_damage(tmp_path):
    program = (
        "import h5py, os, sys; f = h5py.File(sys.argv[1], 'w', libver='latest'); f['x'] = [1.0]; f.flush(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, str(described(tmp_path) / "data.h5")], timeout=60)
    assert re.search("open for writing elsewhere.*if that program has died, h5clear -s", refusal(tmp_path))


def as_nobody(folder):
    """What is said of a folder to somebody who is not root, to whom everything is open."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            load(folder)
            said = "read"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("closed", ["data.npz", "data.h5", "data.parquet", "problem.toml", "."])
def test_what_may_not_be_read_is_no_damage(closed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("closed") / "folder"
    described(folder, closed if closed.startswith("data") else "data.npz")
    np.savez(folder / "data.npz", x=X, y=Y)
    with h5py.File(folder / "data.h5", "w") as file:
        file["x"], file["y"] = X, Y
    pq.write_table(
        pa.table({"x": [row.tolist() for row in X], "y": [row.tolist() for row in Y]}), folder / "data.parquet"
    )
    opened = []
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001 and parent.owner() != "nobody":
            opened.append((parent, parent.stat().st_mode))
            parent.chmod(parent.stat().st_mode | 0o001)
    try:
        (folder / closed).chmod(0o000)
        said = as_nobody(folder)
    finally:
        (folder / closed).chmod(0o700)
        for parent, mode in opened:
            parent.chmod(mode)
    assert said.startswith("BadData: ") and "may not be read by you; change its permissions" in said
    assert "\n" not in said and "whole" not in said


def test_links_that_lead_nowhere_and_folders_are_named(tmp_path):
    fill(tmp_path, TARGET_ONLY)
    (tmp_path / "data.npz").unlink()
    (tmp_path / "data.npz").symlink_to("elsewhere/data.npz")
    assert "'data.npz' is a link to 'elsewhere/data.npz', where nothing is; mend the link" in refusal(tmp_path)
    (tmp_path / "data.npz").unlink()
    (tmp_path / "data.npz").symlink_to("data.npz")
    assert "'data.npz' is a link to 'data.npz', where nothing is" in refusal(tmp_path)
    (tmp_path / "data.npz").unlink()
    (tmp_path / "data.npz").mkdir()
    assert "is no file but a folder; give the name of one" in refusal(tmp_path)


# Types that lose their names, and files of another kind


def half_of(values):
    """The upper two bytes of float32, as bfloat16 has them."""
    return (values.astype("f4").view("u4") >> 16).astype("u2")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (half_of(X).view("V2"), "holds 2-byte values without a type, which is what bfloat16 becomes .* as float32"),
        (np.zeros((ROWS, 8, 8), "V1"), "holds 1-byte values without a type, which is what float8 or int4 becomes"),
        (np.zeros((ROWS, 8, 8), "V3"), "holds 3-byte values without a type; store numbers"),
    ],
)
@pytest.mark.parametrize("name", ["x", "u"])
def test_types_that_numpy_has_not_are_named(values, says, name, tmp_path):
    toml = TARGET_ONLY + '[unlabelled]\nfile = "data.npz"\ninputs = "u"\n'
    assert re.search(f"array '{name}', {says}", refusal(fill(tmp_path, toml, **{name: values})))


def test_a_type_that_numpy_cannot_read_is_named(tmp_path):
    """What a library for float8 writes: '<f1', as long as another type's name."""
    fill(tmp_path, TARGET_ONLY, x=np.zeros((ROWS, 8, 8), "i1"))
    content = (tmp_path / "data.npz").read_bytes()
    assert content.count(b"'|i1'") == 1
    with zipfile.ZipFile(tmp_path / "data.npz") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b"'|i1'", b"'<f1'"))
    assert re.search(
        "'x', holds values of type '<f1', which numpy does not know; .*float8.* as float32", refusal(tmp_path)
    )


def matlab_5(path):
    scipy.io.savemat(path, {"x": X, "y": Y})


def matlab_4(path):
    scipy.io.savemat(path, {"x": X[0], "y": Y}, format="4")


def netcdf_3(path):
    with scipy.io.netcdf_file(path, "w") as file:
        file.createDimension("n", 3)
        file.createVariable("x", "f8", ("n",))[:] = 1.0


def feather(path):
    with pa.ipc.new_file(str(path), (table := pa.table({"x": [1.0]})).schema) as writer:
        writer.write(table)


def written(content):
    return lambda path: path.write_bytes(content)


OTHERS = [
    (matlab_5, "data.mat", r"'data.mat' is MATLAB's of version 5; save it there with '-v7.3', or .*loadmat"),
    (matlab_5, "data.h5", "'data.h5' is MATLAB's of version 5"),
    (matlab_4, "data.mat", r"no known kind; write .npz, .* \(.mat is read if saved with '-v7.3'"),
    (netcdf_3, "data.nc", "is netCDF of version 3; nccopy -k nc4"),
    (netcdf_3, "data.h5", "is netCDF of version 3; nccopy -k nc4"),
    (feather, "data.parquet", "is Arrow's or Feather's; write Parquet"),
    (written(gzip.compress(b"numbers")), "data.h5", "is compressed by gzip"),
    (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "data.npz", "is a pointer of Git LFS"),
    (written(b"<!DOCTYPE html><title>404</title>"), "data.h5", "is a web page"),
    (written(b""), "data.npz", "is empty; copy or write it again"),
    (written(b"x,y\n1,2\n"), "data.csv", "is of no known kind; write .npz"),
]


@pytest.mark.parametrize(("write", "file", "says"), OTHERS)
def test_files_of_other_kinds_are_told_by_their_content(write, file, says, tmp_path):
    write(described(tmp_path, file) / file)
    assert re.search(says, refusal(tmp_path))


@pytest.mark.parametrize("file", ["data.nc", "data.mat", "data.npz"])
def test_what_is_hdf5_is_read_whatever_its_name(file, tmp_path):
    with h5py.File(described(tmp_path, file) / file, "w", userblock_size=1024) as written:
        written["x"], written["y"] = X, Y
    assert np.array_equal(everything(load(tmp_path))[0], X.astype(np.float32))


# Parquet


def flat(values):
    return pa.array(list(values.reshape(len(values), -1)))


def in_parquet(folder, said="[input]\nshape = [8, 8]\n", inputs="x", labels="y", **columns):
    described(folder, "data.parquet", inputs, labels, said)
    columns = {"x": flat(X), "y": pa.array(Y[:, 0]), **columns}
    pq.write_table(pa.table(columns), folder / "data.parquet", row_group_size=50)
    return folder


CODES = (np.arange(ROWS) % 3 + 1).astype(float)
HALF = X.astype("f2")
CATEGORIES = pa.Table.from_pandas(pd.DataFrame({"y": pd.Categorical(CODES * 0.5)}))["y"]
LABELS = {
    "dictionary of integers": (pa.array(CODES.astype(int)).dictionary_encode(), CODES),
    "dictionary of floats": (pa.DictionaryArray.from_arrays(CODES.astype(int), [9.0, 1.5, 2.5, 3.5]), CODES + 0.5),
    "categories of pandas": (CATEGORIES, CODES * 0.5),
    "decimal": (pa.array([Decimal(f"{y:.4f}") for y in Y[:, 0]]), np.round(Y[:, 0], 4)),
    "long decimal": (pa.array([Decimal(f"{y:.4f}") for y in Y[:, 0]], pa.decimal256(60, 30)), np.round(Y[:, 0], 4)),
    "lists of decimals": (pa.array([[Decimal(f"{y:.4f}")] for y in Y[:, 0]]), np.round(Y[:, :1], 4)),
    "half": (pa.array(Y[:, 0].astype("f2")), Y[:, 0].astype("f2")),
}  # fmt: skip


@pytest.mark.parametrize(("column", "meant"), LABELS.values(), ids=LABELS)
def test_labels_of_any_numeric_type_of_parquet_are_read(column, meant, tmp_path):
    labels = everything(load(in_parquet(tmp_path, y=column)))[1]
    assert np.allclose(labels, meant.reshape(labels.shape), rtol=1e-7, atol=0)


def tensors(values, permutation=None):
    """Tensors of that shape, stored in an order of axes."""
    stored = values.transpose(0, *(1 + np.argsort(permutation))) if permutation else values
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), stored.shape[1:], permutation=permutation)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(stored).ravel()), values[0].size)
    return pa.ExtensionArray.from_storage(kind, rows)


INPUTS = {
    "views of lists": (pa.array(X.reshape(ROWS, -1).tolist(), pa.list_view(pa.float64())), X),
    "large views": (pa.array(X.tolist(), pa.large_list_view(pa.list_view(pa.float32()))), X),
    "half": (flat(HALF), HALF),
    "halves in halves": (pa.array(HALF.tolist(), pa.large_list(pa.list_(pa.float16(), 8))), HALF),
    "tensors": (tensors(X), X),
    "transposed tensors": (tensors(X, [1, 0]), X),
    "bytes": (flat((X * 60).astype("u1")), (X * 60).astype("u1")),
}


@pytest.mark.parametrize(("column", "meant"), INPUTS.values(), ids=INPUTS)
def test_inputs_of_any_numeric_type_of_parquet_are_read(column, meant, tmp_path):
    assert np.array_equal(everything(load(in_parquet(tmp_path, x=column)))[0], meant.astype(np.float32))


def test_transposed_tensors_are_what_arrow_says():
    for permutation in (None, [1, 0]):
        assert np.array_equal(tensors(X[:, :4], permutation).to_numpy_ndarray(), X[:, :4])


@pytest.mark.parametrize(("inputs", "add"), [("x.re", 0), ("x", 1), ("x.re.list", 2)])
def test_dots_in_names_of_columns_are_letters(inputs, add, tmp_path):
    columns = {"x.re": flat(X), "x": flat(X + 1), "x.re.list": flat(X + 2), "y.gap": pa.array(Y[:, 0])}
    found, labels = everything(load(in_parquet(tmp_path, inputs=inputs, labels="y.gap", **columns)))
    assert np.array_equal(found, (X + add).astype(np.float32)) and np.allclose(labels[:, 0], Y[:, 0])


def null_inside():
    return pa.array(X.ravel(), mask=np.arange(X.size) == 64 * 78 + 5)


FLAT = X.reshape(ROWS, -1).tolist()
IMAGES = pa.array([{"bytes": b"\x89PNG", "path": "a.png"}] * ROWS)
NO_COLUMNS = {
    "null in a tensor": (
        {"x": pa.ExtensionArray.from_storage(tensors(X).type, pa.FixedSizeListArray.from_arrays(null_inside(), 64))},
        "'x', has nothing at row 78, counted from 0",
    ),
    "null in a view": (
        {"x": pa.array([*FLAT[:5], [None] * 64, *FLAT[6:]], pa.list_view(pa.float64()))},
        "has nothing at row 5",
    ),
    "null category": ({"y": pa.array([*CODES[:99], None, *CODES[100:]]).dictionary_encode()}, "nothing at row 99"),
    "categories of text": ({"y": pa.array(["a", "b"] * 65).dictionary_encode()}, "type string; store numbers"),
    "images": ({"x": IMAGES}, "values of type struct<bytes: binary, path: string>; .* encoded images, .*decode them"),
    "bytes of images": ({"x": pa.array([b"\x89PNG"] * ROWS)}, "values of type binary; .*encoded images"),
    "axes in a circle": ({"x": tensors(np.stack([X, X], 1), [1, 2, 0])}, "not all writers mean alike"),
    "ragged views": (
        {"x": pa.array([*FLAT[:5], FLAT[5][1:], *FLAT[6:]], pa.list_view(pa.float64()))},
        "has 63 values at row 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "says"), NO_COLUMNS.values(), ids=NO_COLUMNS)
def test_columns_that_cannot_be_used_are_refused(columns, says, tmp_path):
    assert re.search(says, refusal(in_parquet(tmp_path, **columns)))


@pytest.mark.parametrize("said", ["", "[input]\nshape = [8, 8]\n"])
def test_a_column_for_each_pixel_is_told_how_to_be_stored(said, tmp_path):
    pixels = {f"px{i}": pa.array(X.reshape(ROWS, -1)[:, i]) for i in range(64)}
    assert re.search(
        r"each pixel has a column of its own, .* np.savez\(\"data.npz\", x=frame\[pixels\].to_numpy\(\).reshape",
        refusal(in_parquet(tmp_path, said=said, inputs="px0", **pixels)),
    )
    frame = pd.read_parquet(tmp_path / "data.parquet")
    frame_pixels = [name for name in frame if name.startswith("px")]
    np.savez(tmp_path / "data.npz", x=frame[frame_pixels].to_numpy().reshape(-1, 8, 8), y=frame["y"])
    assert np.array_equal(everything(load(described(tmp_path, "data.npz")))[0], X.astype(np.float32))


@pytest.mark.thorough
def test_one_large_row_group_is_read_in_pieces(tmp_path):
    """48 MB of tensors in less than half of that, and in their order."""
    rng = np.random.default_rng(0)
    x = rng.random((12_000, 32, 32), np.float32)
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(x), "y": x.mean((1, 2))})
    pq.write_table(table, described(tmp_path, "data.parquet") / "data.parquet", row_group_size=10**6)
    program = """
import json, sys, tracemalloc
import numpy as np, pandas, pyarrow as pa
from sibcl_ray.problems.tabulated import load, tables
tables.BLOCK = 2**18
tracemalloc.start()
problem = load(sys.argv[1])
((_, sample, labels),) = problem.shards("target", 0, [0], 64)
peak = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()
np.savez(sys.argv[2], inputs=sample.inputs, row=sample.parameters["row"], labels=labels)
print(json.dumps([problem.available["target"], peak]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "taken.npz")],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    available, peak = json.loads(done.stdout)
    assert available == 11_970 and peak < x.nbytes / 2
    with np.load(tmp_path / "taken.npz") as taken:
        assert np.array_equal(taken["inputs"], x[taken["row"]])
        assert np.allclose(taken["labels"][:, 0], x[taken["row"]].mean((1, 2)), rtol=1e-6)
