"""Rows of arrays that the declared symmetry makes equal are one input: refused where they count twice, or leak."""

import re

import h5py
import numpy as np
import pytest
from folders import ALL, OWN_TEST, SURROGATE, TARGET_ONLY, arrays, fill, labels_of, of_kind, packed_npz, refusal

from sibcl_ray.problems.tabulated import load, tables

A = arrays()
MOVED = "under the declared symmetry"
PLAIN = TARGET_ONLY.replace("translation = true\npoint_group = true", "")
TURNED = TARGET_ONLY.replace("translation = true\n", "")


def shifted(x, rows=3, columns=5):
    return np.roll(x, (rows, columns), (-2, -1))


def turned(x):
    return np.rot90(x, 1, (-2, -1))


def mirrored(x):
    return x[..., ::-1]


MOVES = {
    "shifted": shifted,
    "shifted by one": lambda x: shifted(x, 0, 1),
    "turned": turned,
    "mirrored": mirrored,
    "transposed": lambda x: np.swapaxes(x, -2, -1),
    "shifted, turned and mirrored": lambda x: mirrored(turned(shifted(x))),
    "stored as float32": lambda x: turned(x).astype(np.float32).astype(np.float64),
    "rounded to another float32": lambda x: np.nextafter(turned(x).astype(np.float32), np.float32(9)),
    "computed again": lambda x: np.float32(3) * (shifted(x) / 3).astype(np.float32),
}


def with_rows(name, **rows):
    """An array with some rows replaced: ``with_rows("x", r4=image)`` has it in row 4."""
    array = A[name].copy()
    for row, image in rows.items():
        array[int(row[1:])] = image
    return array


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_moved_row_is_a_repeated_one(move, tmp_path):
    text = refusal(fill(tmp_path, TARGET_ONLY, x=with_rows("x", r9=move(A["x"][4]))))
    assert re.search(
        rf"array 'x', has the same .* 1 of 130 .*: 9\) repeat another, and rows 4 and 9 are equal {MOVED};", text
    )


def test_a_set_that_holds_all_turned_and_mirrored_copies(tmp_path):
    x = A["x"][:40]
    copies = np.concatenate([f(np.rot90(x, k, (1, 2))) for k in range(4) for f in (np.asarray, mirrored)])
    text = refusal(fill(tmp_path, TURNED, x=copies, y=np.tile(A["y"][:40], (8, 1))))
    assert (
        f"280 of 320 rows (counted from 0: 40, 41, 42, 43, 44, …) repeat another, and rows 0 and 40 are equal {MOVED}"
        in text
    )


def moved_test(toml, own, role, other, move):
    """Row 8 of ``other`` is row 3 of ``own``, moved; and what is said."""
    return (
        {other: with_rows(other, r8=move(A[own][3]))},
        toml,
        f"'{own}', shares 1 of .*: 3\\) with .*'{other}', where row 8 is equal to row 3 {MOVED}; .*{role}",
    )


LEAKS = [
    moved_test(ALL, "x", "surrogate", "sx", turned),
    moved_test(ALL, "x", "unlabelled", "u", shifted),
    moved_test(OWN_TEST, "tx", "target", "x", mirrored),
    moved_test(OWN_TEST, "tx", "surrogate", "sx", lambda x: turned(shifted(x))),
    moved_test(OWN_TEST, "tx", "unlabelled", "u", turned),
]


@pytest.mark.parametrize(("changed", "toml", "says"), LEAKS)
def test_what_is_tested_is_nowhere_else_even_moved(changed, toml, says, tmp_path):
    assert re.search(says, refusal(fill(tmp_path, toml, **changed)))


def test_a_test_without_repeats_has_no_moved_ones_either(tmp_path):
    text = refusal(fill(tmp_path, OWN_TEST, tx=with_rows("tx", r20=shifted(A["tx"][30]))))
    assert f"rows 20 and 30 are equal {MOVED}; each would count twice in the error" in text


def test_where_some_are_equal_as_they_are_the_moved_ones_are_named(tmp_path):
    text = refusal(fill(tmp_path, x=with_rows("x", r5=A["x"][2], r9=turned(A["x"][4]), r11=A["x"][4])))
    assert f"3 of 130 rows (counted from 0: 5, 9, 11) repeat another, and rows 4 and 9 are equal {MOVED}" in text


def test_rows_that_are_equal_as_they_are_are_said_to_be_equal(tmp_path):
    assert "rows 2 and 5 are equal; a label" in refusal(fill(tmp_path, x=with_rows("x", r5=A["x"][2])))


def test_without_a_symmetry_only_rounding_is_looked_through(tmp_path):
    assert load(fill(tmp_path / "a", PLAIN, x=with_rows("x", r5=turned(A["x"][2]))))
    near = np.nextafter(A["x"][2].astype(np.float32), np.float32(9))
    text = refusal(fill(tmp_path / "b", PLAIN, x=with_rows("x", r5=near)))
    assert "rows 2 and 5 are equal but for rounding; a label" in text


def one_pixel(x):
    x = x.copy()
    x[3, 4] *= 1.001
    return x


OTHERS = {
    "not declared": (TURNED, shifted),
    "one pixel": (TARGET_ONLY, lambda x: one_pixel(turned(x))),
    "one part in 10,000": (TARGET_ONLY, lambda x: shifted(x) * 1.0001),
    "one row shifted": (TARGET_ONLY, lambda x: np.concatenate([np.roll(x[:1], 1, 1), x[1:]])),
    "the same values": (TARGET_ONLY, lambda x: np.sort(x.ravel()).reshape(x.shape)),
    "negative": (TARGET_ONLY, lambda x: -x),
}


@pytest.mark.parametrize(("toml", "change"), OTHERS.values(), ids=OTHERS)
def test_what_the_symmetry_does_not_make_equal_is_another_input(toml, change, tmp_path):
    assert load(fill(tmp_path, toml, x=with_rows("x", r5=change(A["x"][2]))))


def test_any_unit_is_the_same_where_scaling_is_declared(tmp_path):
    toml = TARGET_ONLY.replace("point_group = true", "scaling = [0.5, 10]")
    x = with_rows("x", r5=1.7 * shifted(A["x"][2]), r7=turned(A["x"][2]))
    assert f"1 of 130 rows (counted from 0: 5) repeat another, and rows 2 and 5 are equal {MOVED}" in refusal(
        fill(tmp_path, toml, x=x)
    )


@pytest.mark.parametrize("where", ["first", "last"])
def test_channels_are_moved_together(where, tmp_path):
    """Beside pressures of 10⁹, of which all rows have the same, strains of 10⁻³ count as well."""
    x = np.stack([np.broadcast_to(1e9 * A["x"][0], A["x"].shape), 1e-3 * A["x"]], 1)
    alone, both = x.copy(), x.copy()
    alone[5, 1], both[5] = turned(x[2, 1]), turned(x[2])
    toml = TARGET_ONLY.replace("[input]", f'[input]\nchannels = "{where}"')
    toml = toml.replace("[label]", '[label]\nmetric = "absolute"')
    alone, both = ((np.moveaxis(rows, 1, -1) if where == "last" else rows) for rows in (alone, both))
    assert load(fill(tmp_path / "alone", toml, x=alone))
    assert f"rows 2 and 5 are equal {MOVED}" in refusal(fill(tmp_path / "both", toml, x=both))


@pytest.mark.parametrize("kind", ["u1", "i4", "?"])
def test_images_of_whole_numbers(kind, tmp_path):
    x = np.random.default_rng(0).integers(0, 2, A["x"].shape).astype(kind)
    assert load(fill(tmp_path / "a", x=x, toml=TARGET_ONLY))
    x[99] = shifted(turned(x[98]))
    assert f"rows 98 and 99 are equal {MOVED}" in refusal(fill(tmp_path / "b", x=x, toml=TARGET_ONLY))


def test_oblong_images_have_no_symmetry_but_may_be_equal(tmp_path):
    x = A["x"][:, :, :7].copy()
    assert load(fill(tmp_path / "a", PLAIN, x=x))
    x[5] = x[2] * (1 + 3e-8)
    assert re.search("rows 2 and 5 are equal( but for rounding)?;", refusal(fill(tmp_path / "b", PLAIN, x=x)))


def test_numbered_datasets_are_named_by_their_numbers(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for number in range(100, 230):
            image = A["x"][number - 100] if number != 207 else turned(A["x"][20])
            file[f"in/{number}"], file[f"out/{number}"] = image, labels_of(image)
    toml = TARGET_ONLY.replace("data.npz", "data.h5").replace('"x"', '"in/*"').replace('"y"', '"out/*"')
    (tmp_path / "problem.toml").write_text(toml)
    assert re.search(rf"1 of 130 datasets \(numbers: 207\) .* numbers 120 and 207 are equal {MOVED}", refusal(tmp_path))
    np.savez(tmp_path / "more.npz", sx=with_rows("sx", r8=shifted(A["x"][7])), sy=A["sy"])
    with h5py.File(tmp_path / "data.h5", "a") as file:
        file["in/207"][...] = A["x"][107]
    (tmp_path / "problem.toml").write_text(toml + SURROGATE.replace("data.npz", "more.npz"))
    assert re.search(rf"\(numbers: 107\) .*'sx', where row 8 is equal to number 107 {MOVED}", refusal(tmp_path))


@pytest.mark.parametrize("block", [1, 2**22])
def test_all_is_found_in_one_pass(block, tmp_path, monkeypatch):
    """However the array is cut, and each is read from end to end once."""
    passes = []
    blocks = tables.Stored.blocks
    monkeypatch.setattr(tables, "BLOCK", block)
    monkeypatch.setattr(tables.Stored, "blocks", lambda self: passes.append(self.title) or blocks(self))
    folder = of_kind(tmp_path, "npz", packed_npz)
    assert load(folder) and len(passes) == len(set(passes)) == 5
    packed_npz(folder / "unlabelled.npz", u=with_rows("u", r8=turned(A["x"][3])))
    passes.clear()
    assert f"where row 8 is equal to row 3 {MOVED}" in refusal(folder)
    assert len(passes) == len(set(passes)) == 5
