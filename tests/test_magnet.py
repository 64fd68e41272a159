"""Ground states of frustrated magnets, and the problem of their signs."""

import itertools

import numpy as np
import pytest
import torch

from sibcl_ray.learning.networks import InvariantEncoder
from sibcl_ray.problems.magnet import SHARES, MagnetSign
from sibcl_ray.solvers.spins import DATASETS, Lattice, ground_state, read_ground_state

SQUARE, TRIANGULAR = Lattice(4, 4, 2), Lattice(4, 4, 1)
SMALL = MagnetSign(rows=4, columns=4)


def configurations(lattice):
    """All with Sz = 0, ascending."""
    up = itertools.combinations(range(lattice.sites), lattice.sites // 2)
    return np.array(sorted(sum(1 << i for i in sites) for sites in up), np.uint64)


def applied(lattice, j2, states, psi):
    """Hψ, bond by bond, on all configurations: σ·σ = σzσz + 2(σ+σ- + σ-σ+)."""
    out, one = np.zeros_like(psi), np.uint64(1)
    for row, column in itertools.product(range(lattice.rows), range(lattice.columns)):
        steps = [(0, 1, 1.0), (1, 0, 1.0), (1, 1, j2), (1, -1, j2)][: 2 + lattice.diagonals]
        for a, b, coupling in steps:
            i = np.uint64(row * lattice.columns + column)
            j = np.uint64((row + a) % lattice.rows * lattice.columns + (column + b) % lattice.columns)
            equal = (states >> i & one) == (states >> j & one)
            swapped = np.searchsorted(states, states ^ (one << i | one << j)).clip(max=len(states) - 1)
            out += coupling * np.where(equal, psi, 2 * psi[swapped] - psi)
    return out


def amplitudes(state, states):
    """ψ of configurations, from the orbits' coefficients."""
    group = state.lattice.group
    smallest, _ = group.representatives(states)
    row = np.searchsorted(state.representatives, smallest).clip(max=len(state.representatives) - 1)
    there = state.representatives[row] == smallest
    size = group.order / group.stabilisers(smallest)[0]
    return np.where(there, np.abs(state.coefficients[row]) / np.sqrt(size), 0) * np.nan_to_num(state.signs(states))


# What is known of these ground states


@pytest.mark.thorough
def test_the_energy_of_the_square_lattice_is_the_published_one():
    assert ground_state(Lattice(6, 4, 2), 0.5).energy == pytest.approx(-50.1623937953, abs=1e-9)


@pytest.mark.parametrize(
    "lattice, j2",
    [
        pytest.param(lattice, j2, id=f"{j2}-{name}", marks=() if few else pytest.mark.thorough)
        for lattice, name in ((SQUARE, "square"), (TRIANGULAR, "triangular"))
        for j2, few in ((0.0, False), (0.5, False), (1.3, lattice is TRIANGULAR))
    ],
)
def test_ground_states_are_the_lowest_of_the_whole_space(lattice, j2):
    """Without any symmetry: Hψ = Eψ on all 12,870 configurations, and nothing lies lower."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    states = configurations(lattice)
    state = ground_state(lattice, j2)
    psi = amplitudes(state, states)
    assert np.linalg.norm(psi) == pytest.approx(1)
    assert np.abs(applied(lattice, j2, states, psi) - state.energy * psi).max() < 1e-6
    whole = LinearOperator((len(states),) * 2, lambda v: applied(lattice, j2, states, v.ravel()), dtype=float)
    assert eigsh(whole, 1, which="SA", return_eigenvectors=False)[0] == pytest.approx(state.energy, abs=1e-6)


@pytest.mark.parametrize("lattice", [SQUARE, TRIANGULAR], ids=["square", "triangular"])
def test_quspin_finds_the_same(lattice):
    """An independent program, whose own conventions enter."""
    basis = pytest.importorskip("quspin.basis", reason="needs QuSpin: pip install 'sibcl_ray[magnet]'")
    from quspin.operators import hamiltonian

    j2 = 0.7
    pairs, couplings = lattice.bonds(j2)
    zz = [[c, int(i), int(j)] for c, (i, j) in zip(couplings, pairs, strict=True)]
    xy = [[c / 2, i, j] for c, i, j in zz]
    # Its "+" is σx + iσy in these units.
    spins = basis.spin_basis_general(lattice.sites, Nup=lattice.sites // 2, pauli=1)
    quiet = {"check_symm": False, "check_herm": False, "check_pcon": False}
    h = hamiltonian([["zz", zz], ["+-", xy], ["-+", xy]], [], basis=spins, dtype=np.float64, **quiet)
    energies, vectors = h.eigsh(k=1, which="SA")
    state = ground_state(lattice, j2)
    assert energies[0] == pytest.approx(state.energy, abs=1e-8)
    overlap = vectors[:, 0] @ amplitudes(state, spins.states.astype(np.uint64))
    assert abs(overlap) == pytest.approx(1)


@pytest.mark.parametrize("rows, columns", [(4, 4), pytest.param(6, 4, marks=pytest.mark.thorough)])
def test_signs_without_frustration_are_marshalls(rows, columns):
    """On the chessboard, J2 = 0: exactly, for every configuration, and up to the overall sign."""
    problem = MagnetSign(rows=rows, columns=columns, j2=0.0, diagonals=2, alternate=(1, 1))
    sample = problem.sample(2000, np.random.default_rng(0))
    product = problem.solve(sample.inputs) * problem.solve_surrogate(sample)
    assert np.abs(product.mean()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows, columns, diagonals, j2",
    [pytest.param(6, 4, 1, 1.3, marks=pytest.mark.thorough), (4, 4, 2, 0.5), (3, 6, 2, 0.5), (4, 3, 1, 0.5)],
)
def test_amplitudes_have_the_characters_that_are_reported(rows, columns, diagonals, j2):
    problem = MagnetSign(rows=rows, columns=columns, diagonals=diagonals, j2=j2)
    sites = np.arange(problem.lattice.sites, dtype=np.uint64)
    state = problem.ground_state
    states = problem._states(problem.sample(200, np.random.default_rng(0)).inputs)
    bits = states[:, None] >> sites & np.uint64(1)
    images = {name: (bits[:, source] << sites).sum(1) for name, source in problem.lattice.generators.items()}
    images["flip"] = states ^ np.uint64(2 ** len(sites) - 1)
    assert set(problem.characters) == set(images)
    for name, image in images.items():
        assert (state.signs(image) == problem.characters[name] * state.signs(states)).all(), name


def test_symmetries_with_another_sign_are_left_out():
    """18 sites, J2 = 0.5: a step along the columns changes the sign, and so does the flip."""
    problem = MagnetSign(rows=3, columns=6, diagonals=2, j2=0.5)
    assert problem.characters["column translation"] == problem.characters["flip"] == -1
    assert list(problem.symmetries) == ["space_group"]
    whole = len(problem.lattice.group.permutations)
    assert problem.symmetries["space_group"].order == whole / 2
    inputs = torch.from_numpy(problem.sample(200, np.random.default_rng(0)).inputs)
    group = problem.symmetries["space_group"]
    moved = group.act(group.draw(inputs, torch.Generator().manual_seed(0)), inputs)
    assert np.array_equal(problem.solve(moved.numpy()), problem.solve(inputs.numpy()))
    assert (problem.solve(inputs.roll(1, 2).numpy()) == -problem.solve(inputs.numpy())).all()


def test_the_default_has_all_the_symmetries_of_its_lattice():
    problem = MagnetSign()
    assert set(problem.characters.values()) == {1}
    assert problem.symmetries["space_group"].order == 48 and "flip" in problem.symmetries


# The problem


@pytest.mark.parametrize("group", SMALL.symmetries.values(), ids=SMALL.symmetries)
def test_the_groups_are_groups(group):
    x = torch.from_numpy(SMALL.sample(200, np.random.default_rng(0)).inputs)
    generator = torch.Generator().manual_seed(0)
    g, h = group.draw(x, generator), group.draw(x, generator)
    assert torch.equal(group.act(group.compose(g, h), x), group.act(g, group.act(h, x)))
    assert torch.equal(group.act(group.inverse(g), group.act(g, x)), x)
    assert torch.equal(group.act(group.identity(x), x), x)


def test_configurations_are_drawn_with_their_probability():
    """Frequencies of 100,000 draws are |ψ|² of all 12,870 configurations."""
    sample = SMALL.sample(100_000, np.random.default_rng(0))
    states = configurations(SMALL.lattice)
    expected = amplitudes(SMALL.ground_state, states) ** 2
    assert expected.sum() == pytest.approx(1)
    drawn = np.searchsorted(states, SMALL._states(sample.inputs))
    assert np.allclose(sample.parameters["probability"], expected[drawn])
    often = expected * 100_000 > 20
    counts = np.bincount(drawn, minlength=len(states))[often]
    chi_squared = ((counts - expected[often] * 100_000) ** 2 / (expected[often] * 100_000)).mean()
    assert 0.9 < chi_squared < 1.1


def drawn(problem, role, seed, indices=(0, 1, 2)):
    parts = list(problem.shards(role, seed, indices, 200))
    return np.concatenate([problem._states(sample.inputs) for _, sample, _ in parts])


@pytest.mark.parametrize("seed", [0, 1])
def test_no_orbit_is_seen_in_two_roles(seed):
    """Not even an image of a configuration of one role is in another."""
    orbits = {role: set(SMALL.lattice.group.representatives(drawn(SMALL, role, seed))[0]) for role in SHARES}
    for one, other in itertools.combinations(SHARES, 2):
        assert orbits[one] and not orbits[one] & orbits[other]


def test_shards_depend_on_seed_role_and_number_alone():
    ((_, alone, labels),) = SMALL.shards("target", 0, [2], 50)
    *_, (_, last, again) = SMALL.shards("target", 0, [0, 1, 2], 50)
    assert np.array_equal(alone.inputs, last.inputs) and np.array_equal(labels, again)
    assert not np.array_equal(alone.inputs, next(iter(SMALL.shards("target", 1, [2], 50)))[1].inputs)


def test_labels_of_shards_are_their_own():
    for role, expected in (("test", SMALL.solve), ("target", SMALL.solve)):
        _, sample, labels = next(iter(SMALL.shards(role, 0, [0], 50)))
        assert np.array_equal(labels, expected(sample.inputs)) and set(np.unique(labels)) <= {-1, 1}
    _, sample, labels = next(iter(SMALL.shards("surrogate", 0, [0], 50)))
    assert np.array_equal(labels, SMALL.solve_surrogate(sample))
    assert next(iter(SMALL.shards("unlabelled", 0, [0], 50)))[2] is None


def test_the_error_gives_the_overlap():
    """1 − 2 · error, averaged over draws by |ψ|², is the overlap over all configurations."""
    states = configurations(SMALL.lattice)
    guess = SMALL.solve_surrogate(type(SMALL.sample(1, np.random.default_rng(0)))(SMALL._spins(states)))[:, 0]
    psi = amplitudes(SMALL.ground_state, states)
    overlap = (guess * np.sign(psi) * psi**2).sum()
    sample = SMALL.sample(20_000, np.random.default_rng(1))
    guessed, signs = (torch.from_numpy(f) for f in (SMALL.solve_surrogate(sample), SMALL.solve(sample.inputs)))
    error = SMALL.error(guessed * 0.3, signs)
    assert set(error.unique().tolist()) <= {0.0, 1.0}
    assert float(1 - 2 * error.mean()) == pytest.approx(overlap, abs=0.02)


def test_a_configuration_that_has_no_amplitude_has_no_sign():
    assert np.isnan(SMALL.solve(np.ones((1, 4, 4), np.float32))).all()  # Sz is not 0


@pytest.mark.parametrize("dilations", [(1, 1, 1), (1, 2, 3), (3, 2, 1)])
def test_invariant_encoders_take_lattices_that_are_not_square(dilations):
    encoder = InvariantEncoder(channels=8, dilations=dilations, latent=4).build(1, (6, 4), (True, True)).eval()
    x = torch.randn(3, 1, 6, 4)
    assert torch.allclose(encoder(x), encoder(x.roll((2, 1), (2, 3))), atol=1e-5)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"rows": 2}, "3 or more"),
        ({"rows": 5, "columns": 5}, "an even number"),
        ({"diagonals": 3}, "diagonals is 3"),
        ({"alternate": (0, 0)}, "alternate is"),
    ],
)
def test_wrong_fields_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        MagnetSign(**wrong)


def test_too_many_sites_are_refused_before_any_work():
    with pytest.raises(ValueError, match="6 × 6 sites are too many"):
        _ = MagnetSign(rows=6, columns=6).ground_state


# Ground states from files


@pytest.fixture
def write(tmp_path):
    h5py = pytest.importorskip("h5py")

    def write(state, **changes):
        arrays = dict(
            zip(DATASETS, (state.representatives, state.coefficients[:, None], np.array([state.energy])), strict=True)
        )
        path = tmp_path / "ground_state.h5"
        with h5py.File(path, "w") as file:
            for name, values in (arrays | changes).items():
                if values is not None:
                    file[name] = values
        return path

    return write


@pytest.mark.parametrize("lattice", [SQUARE, TRIANGULAR], ids=["square", "triangular"])
@pytest.mark.parametrize("turned", [False, True], ids=["columns", "rows"])
def test_files_give_back_what_was_solved(lattice, turned, write):
    solved = ground_state(lattice, 1.3)
    shuffled = np.random.default_rng(0).permutation(len(solved.representatives))
    vectors = np.stack([-solved.coefficients, solved.coefficients * 0], 1)[shuffled]
    path = write(
        solved,
        **{DATASETS[0]: solved.representatives[shuffled], DATASETS[1]: vectors.T if turned else vectors},
    )
    read = read_ground_state(path, lattice, 1.3)
    assert read.characters == solved.characters and read.energy == solved.energy
    assert np.array_equal(read.representatives, solved.representatives)
    assert np.allclose(read.coefficients, solved.coefficients)
    read_ground_state.cache_clear()


def test_a_problem_takes_its_ground_state_from_a_file(write):
    path = write(SMALL.ground_state)
    problem = MagnetSign(rows=4, columns=4, file=str(path))
    inputs = SMALL.sample(50, np.random.default_rng(0)).inputs
    assert np.array_equal(problem.solve(inputs), SMALL.solve(inputs))
    read_ground_state.cache_clear()


@pytest.mark.parametrize(
    "j2, changes, says",
    [
        (0.5, {}, "no eigenstate"),
        (1.3, {DATASETS[2]: np.array([-10.0])}, "no eigenstate"),
        (1.3, {DATASETS[0]: np.arange(157, dtype=np.uint64) + 40_000}, "not the smallest"),
        (1.3, {DATASETS[1]: np.zeros(3)}, "expected as many"),
        (1.3, {DATASETS[2]: None}, "expected HDF5 with"),
    ],
)
def test_files_that_cannot_be_right_are_refused(j2, changes, says, write):
    with pytest.raises(ValueError, match=says):
        read_ground_state(write(ground_state(TRIANGULAR, 1.3), **changes), TRIANGULAR, j2)
