"""Folders that cannot be used: each is refused in one line, and whatever the damage, by one kind of error."""

import os
import pickle
import re
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import (
    ALL,
    OWN_TEST,
    TARGET_ONLY,
    WRITERS,
    arrays,
    few,
    fill,
    flat_lists,
    hdf5,
    npz,
    of_kind,
    packed_npz,
    refusal,
)
from hypothesis import given
from hypothesis import strategies as st

from sibcl_ray.problems.tabulated import BadData, declaration, load, tables
from sibcl_ray.storage.fingerprint import fingerprint

# What is refused, and in which words


def altered(name, **changes):
    """An array with some rows replaced: ``altered("x", r4=nan)`` has NaN in row 4."""
    array = arrays()[name].copy()
    for row, value in changes.items():
        array[int(row[1:])] = value
    return array


def objects(count):
    return np.array([{"pickled": i} for i in range(count)], dtype=object)


A = arrays()
SYMMETRIC = "translation = true\npoint_group = true"

BAD_ARRAYS = {
    "NaN": ({"x": altered("x", r4=np.nan, r17=np.nan)}, ALL, "'data.npz', array 'x', has NaN .* 2 of 130 .* 4, 17"),
    "infinite label": ({"y": altered("y", r9=np.inf)}, ALL, "array 'y', has NaN or infinity in 1 of 130 .*: 9"),
    "many": ({"u": altered("u", **{f"r{i}": np.nan for i in range(9)})}, ALL, "9 of 60 rows .*: 0, 1, 2, 3, 4, …"),
    "too large for float32": ({"x": altered("x", r3=1e39)}, ALL, "array 'x', .* float32 in 1 .*: 3.* larger unit"),
    "inexact integers": ({"x": (A["x"] * 1e7).astype("u8")}, TARGET_ONLY, "integers beyond ±16,777,216"),
    "inexact negative integers": ({"x": (A["x"] * -1e7).astype("i8")}, TARGET_ONLY, "integers beyond"),
    "complex": ({"x": A["x"] * 1j}, ALL, "holds complex numbers; store real and imaginary parts"),
    "text": ({"y": A["y"].astype(str)}, ALL, "array 'y', holds text"),
    "dates": ({"y": A["y"].astype("M8[s]")}, ALL, "holds dates"),
    "records": ({"y": np.zeros(130, [("a", "f8")])}, ALL, "holds records"),
    "pickled": ({"y": objects(130)}, ALL, "array 'y', holds Python objects, which are never unpickled"),
    "lengths": ({"y": A["y"][:-1]}, ALL, "array 'x', has 130 rows and 'y' has 129"),
    "rows along the last axis": ({"x": A["x"].T}, ALL, "has 8 rows and 'y' has 130.*transpose"),
    "empty": ({"u": A["u"][:0]}, ALL, r"array 'u', is empty, of shape \(0, 8, 8\)"),
    "empty rows": ({"u": A["u"][:, :0]}, ALL, r"array 'u', is empty, of shape \(60, 0, 8\)"),
    "single number": ({"u": np.float64(1)}, ALL, "array 'u', is a single number"),
    "vectors among images": ({"x": A["x"][:, :, 0]}, ALL, r"'sx', has inputs of shape \(8, 8\) and .*'x', has \(8,\)"),
    "flat images": (
        {"x": A["x"].reshape(130, -1)},
        ALL,
        r"shape \(64,\); give shape = \[8, 8\] in \[input\] if they are images, and shape = \[64\] if they are vectors",
    ),
    "scalars": ({"x": A["x"][:, 0, 0]}, ALL, r"rows of shape \(\); give shape = \[1\] in \[input\]"),
    "cubes": (
        {"x": np.ones((130, 4, 4, 4))},
        ALL,
        'channels = "first" or "last" in .input., and channels = "none" if they are volumes',
    ),
    "four axes": ({"x": np.ones((130, 2, 2, 2, 2))}, ALL, "networks take inputs with 1 to 3 axes, besides channels"),
    "an axis of one": ({"x": A["x"][:, None, :, 0]}, ALL, r"shape \(1, 8\); its first axis .* shape = \[8\] in"),
    "huge rows": ({"u": np.broadcast_to(np.float16(1), (1, 5000, 5000))}, ALL, "no network here takes so many values"),
    "inputs of other shape": (
        {"sx": A["sx"][:, :7, :7]},
        ALL,
        r"'sx', has inputs of shape \(7, 7\) and .*'x',.*\(8, 8\)",
    ),
    "labels of other shape": ({"sy": A["sy"][:, :1]}, ALL, r"'sy', has labels of shape \(1,\) and .*'y',.*\(2,\)"),
    "repeated input": (
        {"x": altered("x", r5=A["x"][2], r9=A["x"][2], r7=A["x"][1])},
        ALL,
        "array 'x', has the same input more than once: 3 of 130 rows .*: 5, 7, 9.* rows . and . are equal",
    ),
    "repeated but for the sign of zero": (
        {"x": altered("x", r5=0.0, r9=-0.0), "y": A["y"]},
        TARGET_ONLY.replace(SYMMETRIC, ""),
        "1 of 130 rows .*: 9.* rows 5 and 9 are equal",
    ),
    "repeated in float32": ({"x": altered("x", r5=A["x"][2] * (1 + 1e-12))}, ALL, "rows 2 and 5 are equal"),
    "repeated in the test": (
        {"tx": altered("tx", r8=A["tx"][3])},
        OWN_TEST,
        "'tx', has the same .*: 8.* twice in the error",
    ),
    "test in target": (
        {"tx": altered("tx", r8=A["x"][3])},
        OWN_TEST,
        r"'tx', shares 1 of 40 rows \(counted from 0: 8\) with .*'x', where .* is row 3; .* from \[target\]",
    ),
    "test in surrogate": ({"sx": altered("sx", r8=A["tx"][3])}, OWN_TEST, "'tx', shares 1 of 40 .*: 3.*'sx'.* row 8"),
    "test in unlabelled": ({"u": altered("u", r8=A["tx"][3])}, OWN_TEST, "'tx', shares 1 of 40 .*: 3.*'u'.* row 8"),
    "target in unlabelled": (
        {"u": A["x"]},
        ALL,
        r"'x', shares 130 of 130 .*'u'.*test is drawn from .* rows from \[unlabelled\], or give a \[test\]",
    ),
    "target in surrogate": ({"sx": altered("sx", r1=A["x"][3])}, ALL, r"'x', shares 1 of 130 .* from \[surrogate\]"),
    "zero label": ({"y": altered("y", r2=0)}, ALL, "array 'y', has zeros, which metric = 'relative' .* 1 of 130 .*: 2"),
    "label that float32 makes zero": ({"y": altered("y", r2=1e-50)}, ALL, "array 'y', has zeros"),
    "zero entry": (
        {"y": altered("y", r2=[0, 1])},
        ALL.replace("[label]", '[label]\nmetric = "mean_relative"'),
        "zeros, which metric = 'mean_relative'",
    ),
    "labels all equal": ({"y": np.full((130, 2), 0.1)}, ALL, "array 'y', is the same in all rows"),
    "large labels": ({"y": A["y"] * 3e4}, TARGET_ONLY, r"'y', .* root mean square .* give scale = 1\d*0 in"),
    "small labels": ({"y": A["y"] * 1e-6}, TARGET_ONLY, "give scale = 1e-06 in"),
    "target labels in another unit": ({"y": A["y"] * 1e6}, ALL, "'y', .* no offset and scale suit all .* in one unit"),
    "surrogate labels in another unit": ({"sy": A["sy"] * 1e6}, ALL, r"'sy', .* is it in the unit of \[target\]\?"),
    "constant inputs": ({"u": np.full((60, 8, 8), 3.3)}, ALL, "array 'u', is 3.3 everywhere; leave out"),
    "constant channel": (
        {"x": np.stack([A["x"], 0 * A["x"] + 7], 1)},
        TARGET_ONLY.replace("[input]", '[input]\nchannels = "first"'),
        "array 'x', is 7 everywhere in channel 1",
    ),
}


@pytest.mark.parametrize(("changed", "toml", "says"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused(changed, toml, says, tmp_path):
    assert re.search(says, refusal(fill(tmp_path, toml, **changed)))


@pytest.mark.parametrize("role", ["target in unlabelled", "target in surrogate"])
def test_with_an_own_test_target_inputs_may_be_learned_from_elsewhere(role, tmp_path):
    assert load(fill(tmp_path, OWN_TEST, **BAD_ARRAYS[role][0]))


@pytest.mark.parametrize("name", ["sx", "u"])
def test_repeats_that_split_nothing_are_allowed(name, tmp_path):
    assert load(fill(tmp_path, OWN_TEST, **{name: altered(name, r5=A[name][6])}))


def test_zeros_are_labels_where_nothing_is_divided_by_them(tmp_path):
    assert load(fill(tmp_path / "a", ALL.replace("[label]", '[label]\nmetric = "absolute"'), y=altered("y", r2=0)))
    assert load(fill(tmp_path / "b", ALL, sy=altered("sy", r2=0)))  # no error of a surrogate label is ever taken


def swap(old, new):
    assert ALL.count(old) == 1, old
    return ALL.replace(old, new)


BAD_TOML = {
    "nothing": ("", "name is missing; give a short name"),
    "name of a path": (swap('"moments"', '"../moments"'), "name is '../moments'; give a short name"),
    "name in capitals": (swap('"moments"', '"Moments"'), "name is 'Moments'"),
    "no target": ('name = "a"', r"has no \[target\]"),
    "syntax": (swap('name = "moments"', "name = moments"), "is not TOML: .*line 2"),
    "syntax later": (swap("test = 30", "test = = 30"), "is not TOML: .*line 7"),
    "backslashes": (swap('name = "moments"', 'name = "c:\\users"'), r"not TOML: .*line 2.*write / for \\"),
    "twice": (swap("test = 30", "test = 30\ntest = 40"), "is not TOML: .*line 8"),
    "unknown table": (swap("[unlabelled]", "[unlabeled]"), "'unlabeled' is not known; did you mean 'unlabelled'"),
    "unknown key": (swap("periodic", "periodical"), r"\[input\] has 'periodical', .*did you mean 'periodic'"),
    "unknown symmetry": (swap("translation", "translations"), r"\[symmetry\] has 'translations', .*'translation'"),
    "very unknown symmetry": (
        swap("translation", "gauge"),
        "'gauge', .*there is 'translation', 'point_group', 'scaling'",
    ),
    "no table": ("target = 3\n" + swap("[target]", "[target.x]"), "not TOML"),
    "a value for a table": ('name = "a"\ntarget = "data.npz"', r"target is 'data.npz'; make it a table, \[target\]"),
    "no labels": (swap('labels = "y"\n', ""), r"labels in \[target\] is missing; give text"),
    "labels of unlabelled": (ALL + 'labels = "y"', r"\[unlabelled\] has 'labels', which is not known"),
    "no test": (swap("test = 30\n", ""), r"has neither test in \[target\] nor a table \[test\]"),
    "two tests": (
        OWN_TEST.replace("[input]", "test = 30\n[input]", 1),
        r"both test in \[target\] and a table \[test\]",
    ),
    "test of text": (swap("test = 30", 'test = "30"'), r"test in \[target\] is '30'; give a whole number"),
    "test of a flag": (swap("test = 30", "test = true"), "is True; give a whole number"),
    "test of none": (swap("test = 30", "test = 0"), "test in .target. is 0; give a whole number, 1 or more"),
    "test of a part": (swap("test = 30", "test = 0.2"), "is 0.2; give a whole number"),
    "test of all": (swap("test = 30", "test = 130"), "has 130 rows, of which test = 130 .* leaves none to learn from"),
    "absolute path": (swap('[surrogate]\nfile = "', '[surrogate]\nfile = "/'), "'/data.npz' lies outside the folder"),
    "path upwards": (swap('[surrogate]\nfile = "', '[surrogate]\nfile = "a/../../'), "lies outside the folder"),
    "path of another system": (
        swap('[surrogate]\nfile = "data.npz"', "[surrogate]\nfile = 'C:\\d.npz'"),
        "lies outside",
    ),
    "no such file": (swap('[surrogate]\nfile = "', '[surrogate]\nfile = "dta'), "'dtadata.npz' is not in .*'data.npz'"),
    "a folder": (swap('[surrogate]\nfile = "data.npz', '[surrogate]\nfile = ".'), "'.' in .* is no file"),
    "unknown kind": (
        swap('[surrogate]\nfile = "data.npz', '[surrogate]\nfile = "problem.toml'),
        "no known kind; write .npz",
    ),
    "no such array": (swap('inputs = "sx"', 'inputs = "sxx"'), "'data.npz' has no array 'sxx'; did you mean 'sx'"),
    "nothing like it": (swap('inputs = "sx"', 'inputs = "epsilon"'), "no array 'epsilon'; there is 'x', 'y'"),
    "file of a number": (
        swap('[surrogate]\nfile = "data.npz"', "[surrogate]\nfile = 3"),
        r"file in \[surrogate\] is 3",
    ),
    "metric": (
        swap("[label]", '[label]\nmetric = "rms"'),
        "'rms'; give one of 'relative', 'mean_relative', 'absolute'",
    ),
    "loss": (swap("[label]", '[label]\nloss = "mse"'), "'mse'; give one of 'absolute', 'squared', 'log_absolute'"),
    "loss of a list": (swap("[label]", "[label]\nloss = []"), r"loss in \[label\] is \[\]"),
    "label scale": (swap("[label]", "[label]\nscale = 0"), "scale in .label. is 0; give a positive number"),
    "negative scale": (swap("[label]", "[label]\nscale = -1.0"), "is -1.0; give a positive number"),
    "infinite offset": (swap("[label]", "[label]\noffset = inf"), "is inf; give a finite number, or 'surrogate mean'"),
    "NaN offset": (swap("[label]", "[label]\noffset = nan"), "is nan; give a finite number"),
    "target mean": (swap("[label]", '[label]\noffset = "target mean"'), "'target mean'; give a finite number, or"),
    "mean of no surrogate": (
        TARGET_ONLY.replace("[label]", '[label]\noffset = "surrogate mean"'),
        r"is 'surrogate mean', but there is no \[surrogate\]",
    ),
    "input scale": (swap("[input]", "[input]\nscale = [1, 0]"), r"is \[1, 0\]; give a positive number, or a list"),
    "scales": (swap("[input]", "[input]\nscale = [1, 2]"), "scale in .input. has 2 numbers for 1 channels"),
    "no scales": (swap("[input]", "[input]\nscale = []"), r"is \[\]; give a positive number, or a list"),
    "shape": (
        swap("[input]", "[input]\nshape = [8, 7]"),
        r"\(8, 8\), 64 values, and shape = \[8, 7\] in \[input\] has 56",
    ),
    "shape of text": (swap("[input]", '[input]\nshape = "8x8"'), "is '8x8'; give a list of whole numbers"),
    "channels": (swap("[input]", '[input]\nchannels = "second"'), "give one of 'none', 'first', 'last'"),
    "channels of none": (
        swap("[input]", '[input]\nshape = 64\nchannels = "first"'),
        r"\(64,\); channels in \[input\] are an axis besides",
    ),
    "periodic of text": (swap("periodic = true", 'periodic = "yes"'), "is 'yes'; give true or false"),
    "translation with a boundary": (swap("periodic = true", "periodic = false"), "translation .* without a boundary"),
    "translation along an axis with a boundary": (
        swap("periodic = true", "periodic = [true, false]"),
        r"a boundary along each axis that it moves; give periodic = true .*give translation = \[true, false\] if not",
    ),
    "too many axes": (
        swap("periodic = true", "periodic = [true, true, true]"),
        r"periodic in \[input\] has 3 answers for inputs of 2 axes",
    ),
    "symmetry of too many axes": (
        swap("translation = true", "translation = [true, false, true]"),
        r"translation in \[symmetry\] has 3 answers for inputs of 2 axes",
    ),
    "symmetry of a number": (swap("point_group = true", "point_group = 4"), r"point_group in \[symmetry\] is 4"),
    "scaling of a flag": (swap("point_group = true", "scaling = true"), r"is True; give \[smallest, largest\]"),
    "scaling downwards": (swap("point_group = true", "scaling = [2, 1]"), r"is \[2, 1\]; give \[smallest"),
    "scaling from zero": (swap("point_group = true", "scaling = [0, 1]"), r"is \[0, 1\]; .*both positive"),
    "scaling out of range": (
        swap("point_group = true", "scaling = [1.5, 3]"),
        r"array 'x', has values outside 1.5 to 3, the range of scaling .* of 130 rows .* widen it",
    ),
    "scaling out of range above": (swap("point_group = true", "scaling = [0.5, 3]"), "values outside 0.5 to 3"),
    "huge decimal": (swap("test = 30", "test = " + "9" * 5000), "a number of thousands of digits"),
    "huge hexadecimal": (swap("test = 30", "test = 0x" + "f" * 9000), "test in .target. is a huge number"),
    "huge float": (swap("[label]", "[label]\nscale = " + "9" * 400), "give a positive number, less than 1e30"),
    "deep": ("a = " + "[" * 50_000, "endless brackets"),
    "unprintable": (swap('[surrogate]\nfile = "', '[surrogate]\nfile = "\\u0000'), "give text in quotes"),
    "long": (ALL + "#" * 2**20, "bytes; it should be a few lines"),
}


@pytest.mark.parametrize(("toml", "says"), BAD_TOML.values(), ids=BAD_TOML)
def test_descriptions_that_cannot_be_used_are_refused(toml, says, tmp_path):
    assert re.search(says, refusal(fill(tmp_path, toml)))


def lacking_file(folder):
    (folder / "data.npz").unlink()


def lacking_description(folder):
    (folder / "problem.toml").rename(folder / "problems.toml")


def description_in_latin(folder):
    (folder / "problem.toml").write_bytes(ALL.replace('"volt"', '"Å"').encode("latin-1"))


def folder_for_file(folder):
    (folder / "data.npz").unlink()
    (folder / "data.npz").mkdir()


def pipe_for_file(folder):
    """Whose reader would wait for ever."""
    (folder / "data.npz").unlink()
    os.mkfifo(folder / "data.npz")


def bare_array(folder):
    with open(folder / "data.npz", "wb") as file:
        np.save(file, A["x"])


def pickle_for_file(folder):
    (folder / "data.npz").write_bytes(pickle.dumps(A))


def member_cut_short(folder):
    """A whole archive of an array that is not."""
    with zipfile.ZipFile(folder / "data.npz") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[:-8] if name == "sy.npy" else content)


def stray_members(folder):
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"")


BAD_FOLDERS = [
    (lacking_file, "'data.npz' is not in .*; there is 'problem.toml'"),
    (lacking_description, "'problem.toml' is not in .*; did you mean 'problems.toml'"),
    (description_in_latin, "problem.toml, line 9, is not UTF-8"),
    (folder_for_file, "'data.npz' in .* is no file"),
    (pipe_for_file, "'data.npz' in .* is no file"),
    (bare_array, "'data.npz' is a single array of np.save; store it by np.savez"),
    (pickle_for_file, "'data.npz' is a pickle, which is never opened"),
    (member_cut_short, "array 'sy', has 1,112 bytes where its shape .* needs 1,120"),
    (stray_members, "array 'x', cannot be read"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD_FOLDERS)
def test_folders_that_cannot_be_used_are_refused(spoil, says, tmp_path):
    spoil(fill(tmp_path))
    assert re.search(says, refusal(tmp_path))


def test_no_folder_is_refused(tmp_path):
    assert "is no folder; give one that holds problem.toml" in refusal(tmp_path / "nowhere")


def test_nothing_is_ever_unpickled(tmp_path):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    array = np.array([Trap()] * 130, dtype=object)
    assert "never unpickled" in refusal(fill(tmp_path / "folder", x=array))
    assert not trap.exists()


def test_a_link_may_lead_outside(tmp_path):
    """To where large files are kept; a name may not."""
    problem = load(fill(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "problem.toml").write_text(ALL)
    (tmp_path / "elsewhere" / "data.npz").symlink_to(tmp_path / "data.npz")
    assert load(tmp_path / "elsewhere") == problem


def in_hdf5(write):
    def make(folder):
        with h5py.File(folder / "data.h5", "w") as file:
            file["y"] = A["y"]
            write(file, folder)

    return "h5", make


def in_parquet(**columns):
    def make(folder):
        table = {"x": flat_lists(A["x"]), "y": flat_lists(A["y"]), **columns}
        pq.write_table(pa.table(list(table.values()), names=[name.strip() for name in table]), folder / "data.parquet")

    return "parquet", make


def never_written(file, folder):
    file.create_dataset("x", shape=(130, 8, 8), dtype="f4")


def partly_written(file, folder):
    file.create_dataset("x", shape=(130, 8, 8), chunks=(10, 8, 8), dtype="f4")[:120] = A["x"][:120]


def group(file, folder):
    file["x/epsilon"] = A["x"]


def attribute(file, folder):
    file.attrs["x"] = A["x"][0]


def text(file, folder):
    file["x"] = ["a"] * 130


def nothing(file, folder):
    file["x"] = h5py.Empty("f8")


def complex_numbers(file, folder):
    file["x"] = A["x"] * 1j


def linked(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = A["x"]
    file["x"] = h5py.ExternalLink("other.h5", "x")


def linked_to_nothing(file, folder):
    file["x"] = h5py.ExternalLink("nowhere.h5", "x")


def virtual(file, folder):
    layout = h5py.VirtualLayout(shape=(130, 8, 8), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(130, 8, 8))
    file.create_virtual_dataset("x", layout)


def raw_elsewhere(file, folder):
    file.create_dataset("x", shape=(130, 8, 8), dtype="f8", external=[(str(folder / "raw"), 0, A["x"].nbytes)])[:] = A[
        "x"
    ]


LISTS = A["x"].reshape(130, 64).tolist()

BAD_FILES = {
    "never written": (in_hdf5(never_written), "was made for 130 rows, of which some were never written"),
    "partly written": (in_hdf5(partly_written), "was made for 130 rows, of which some were never written"),
    "group": (in_hdf5(group), "no array 'x'; .*'x/epsilon'"),
    "attribute": (in_hdf5(attribute), "no array 'x'; there is 'y'"),
    "text in HDF5": (in_hdf5(text), "holds text; store numbers"),
    "nothing in HDF5": (in_hdf5(nothing), "is a single number|is empty"),
    "complex HDF5": (in_hdf5(complex_numbers), "holds complex numbers"),
    "external link": (in_hdf5(linked), "only points to other files; copy the numbers"),
    "broken link": (in_hdf5(linked_to_nothing), "no array 'x'; there is 'y'"),
    "virtual": (in_hdf5(virtual), "only points to other files"),
    "raw file": (in_hdf5(raw_elsewhere), "only points to other files"),
    "ragged": (
        in_parquet(x=pa.array([*LISTS[:70], LISTS[70][:63], *LISTS[71:]])),
        "63.* at row 70.* before",
    ),
    "ragged inside": (
        in_parquet(x=pa.array([*A["x"][:7].tolist(), [[1.0] * 8] * 7 + [[1.0]], *A["x"][8:].tolist()])),
        "has 1 values at row 7, counted from 0, and 8 before",
    ),
    "null row": (in_parquet(x=pa.array([*LISTS[:129], None])), "has nothing at row 129, counted from 0"),
    "null inside": (in_parquet(x=pa.array([*LISTS[:5], [None, *LISTS[5][1:]], *LISTS[6:]])), "has nothing at row 5"),
    "no lists": (in_parquet(x=pa.array([[]] * 130, pa.list_(pa.float32()))), r"is empty, of shape \(130, 0\)"),
    "Parquet text": (in_parquet(y=pa.array(["a"] * 130)), "'y', holds values of type string; store numbers"),
    "Parquet records": (in_parquet(y=pa.array([{"a": 1.0}] * 130)), "holds values of type struct"),
    "Parquet dates": (in_parquet(y=pa.array(np.zeros(130, "M8[s]"))), "holds values of type timestamp"),
    "all null": (in_parquet(y=pa.nulls(130)), "has nothing at row 0"),
    "twice": (in_parquet(**{"x ": flat_lists(A["x"])}), "array 'x', is there more than once"),
    "late length": (in_parquet(x=pa.array([*LISTS[:129], [1.0]])), "at row 129"),
}


@pytest.mark.parametrize(("file", "says"), BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("block", [1, 2**22])
def test_arrays_of_other_kinds_are_refused_too(file, says, block, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", block)
    suffix, make = file
    make(tmp_path)
    toml = TARGET_ONLY.replace("data.npz", f"data.{suffix}")
    (tmp_path / "problem.toml").write_text(toml.replace("[input]", "[input]\nshape = [8, 8]"))
    assert re.search(says, refusal(tmp_path))


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    of_kind(tmp_path / "a", "h5", hdf5)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'sibcl_ray[hdf5]'" in refusal(tmp_path / "a")


# Damage: a file is read as something, or refused in one line


def read_or_refused(folder):
    """Whether it could be read."""
    try:
        loaded = load(folder)
    except BadData as refused:
        assert "\n" not in str(refused)
        return False
    assert isinstance(loaded.available["target"], int) and fingerprint(loaded)
    return True


@pytest.fixture(
    scope="module",
    params=[pytest.param(WRITERS[i], marks=[pytest.mark.thorough] * (i in (1, 5))) for i in (0, 1, 4, 5, 7)],
)
def whole(request, tmp_path_factory):
    """A folder, the file of its target, and what that should hold."""
    suffix, write = request.param
    folder = of_kind(tmp_path_factory.mktemp("whole"), suffix, write)
    path = folder / f"target.{suffix}"
    return folder, path, path.read_bytes()


@few
@given(st.data())
def test_damaged_bytes_are_read_or_refused(whole, data):
    """Formats without checksums hide damage to their numbers, but never raise anything else."""
    folder, path, content = whole
    damaged = bytearray(content)
    head = st.integers(0, min(2000, len(content) - 1))
    anywhere = st.integers(0, len(content) - 1)
    tail = st.integers(max(0, len(content) - 2000), len(content) - 1)
    for position in data.draw(st.lists(st.one_of(head, anywhere, tail), min_size=1, max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    read_or_refused(folder)


@few
@given(st.data())
def test_a_file_that_is_cut_short_is_refused(whole, data):
    folder, path, content = whole
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert not read_or_refused(folder)


@few
@given(st.binary(max_size=300))
def test_bytes_that_are_no_file_are_refused(whole, content):
    folder, path, good = whole
    for head in (b"", good[:8], good[:100]):
        path.write_bytes(head + content)
        assert not read_or_refused(folder)


@pytest.mark.parametrize("write", [npz, packed_npz])
def test_damage_in_npz_is_always_found(write, tmp_path):
    """It has checksums: bytes of an array's data are changed, all over it and up to its last."""
    path = of_kind(tmp_path, "npz", write) / "target.npz"
    content, whole, refused = path.read_bytes(), load(tmp_path), 0
    with zipfile.ZipFile(path) as archive:
        end = archive.infolist()[1].header_offset
    for position in (*range(200, end, 1499), *range(end - 8, end)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert load(tmp_path) == whole  # the last bits of a byte may mean nothing
        except BadData:
            refused += 1
    assert refused > 40


@few
@given(st.data())
def test_damaged_descriptions_are_read_or_refused(data):
    content = bytearray(OWN_TEST.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        first = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 8))
        content[first : first + length] = data.draw(st.binary(max_size=6))
    try:
        assert isinstance(declaration.parse(bytes(content)), declaration.Declaration)
    except BadData as refused:
        assert "\n" not in str(refused)


tomls = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.dates(),
        st.sampled_from(["data.npz", "x", "relative", "first", "surrogate mean", [8, 8], [1.0, 2.0], 30]),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KEYS = sorted({key for table in declaration._TABLES.values() for key in table.model_fields if key != "test"})


def written(value):
    """A value as TOML; text by the rules of JSON, which are TOML's for what is drawn here."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not "\ud800" <= c <= "\udfff") + '"'
    return str(value).lower() if isinstance(value, (bool, float)) else str(value)


@few
@given(st.sampled_from(sorted(declaration._TABLES)), st.sampled_from(KEYS), tomls)
def test_any_value_of_any_key_is_read_or_refused(table, key, value):
    others = "" if table == "target" else '[target]\nfile = "a.npz"\ninputs = "x"\nlabels = "y"\ntest = 3\n'
    toml = f'name = "a"\n{others}[{table}]\n{key} = {written(value)}\n'
    try:
        assert isinstance(declaration.parse(toml.encode()), declaration.Declaration)
    except BadData as refused:
        assert "\n" not in str(refused) and "not TOML" not in str(refused)
