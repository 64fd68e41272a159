"""NT-Xent against a slow loop, closed forms, invariances and finite differences, on one worker and on several."""

import math
from itertools import product

import pytest
import torch
import torch.distributed as dist
from groups import group

from sibcl_ray.learning import distributed
from sibcl_ray.learning.contrastive import nt_xent
from sibcl_ray.problems import losses

BATCH, DIMENSION, TEMPERATURE = 12, 5, 0.3


def views(seed=0, batch=BATCH, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, DIMENSION, generator=generator, dtype=dtype) for _ in range(2))


def slow_nt_xent(a, b, temperature):
    """Equation (1) of Chen et al. (2020), term by term."""
    rows = [row / row.norm() for row in (*a, *b)]
    total = 0.0
    for i, row in enumerate(rows):
        partner = rows[(i + len(a)) % len(rows)]
        denominator = sum(math.exp(row @ other / temperature) for j, other in enumerate(rows) if j != i)
        total -= math.log(math.exp(row @ partner / temperature) / denominator)
    return total / len(rows)


@pytest.mark.parametrize(("batch", "temperature"), product((1, 2, 12), (0.1, 0.5, 3.0)))
def test_nt_xent_is_its_definition(batch, temperature):
    a, b = views(batch=batch)
    expected = slow_nt_xent(a.double(), b.double(), temperature)
    assert nt_xent(a, b, temperature).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_nt_xent_of_equal_projections_is_that_of_a_guess(temperature):
    same = torch.ones(BATCH, DIMENSION)
    assert nt_xent(same, same, temperature).item() == pytest.approx(math.log(2 * BATCH - 1), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_of_orthogonal_pairs(temperature):
    """Each pair agrees, and every other row is at a right angle: log(1 + (2N − 2) exp(−1/τ))."""
    pairs = torch.eye(BATCH)
    expected = math.log1p((2 * BATCH - 2) * math.exp(-1 / temperature))
    assert nt_xent(pairs, pairs, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_nt_xent_does_not_ask_which_view_is_first():
    a, b = views()
    torch.testing.assert_close(nt_xent(a, b, TEMPERATURE), nt_xent(b, a, TEMPERATURE))


def test_nt_xent_does_not_ask_for_the_order_of_the_batch():
    a, b = views()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nt_xent(a, b, TEMPERATURE), nt_xent(a[order], b[order], TEMPERATURE))


def test_nt_xent_is_a_function_of_angles():
    """Neither the lengths of rows nor a common rotation change it."""
    a, b = views()
    loss = nt_xent(a, b, TEMPERATURE)
    lengths = torch.logspace(-2, 2, BATCH)[:, None]
    rotation = torch.linalg.qr(views(1)[0][:DIMENSION])[0]
    torch.testing.assert_close(nt_xent(a * lengths, b / lengths, TEMPERATURE), loss)
    torch.testing.assert_close(nt_xent(a @ rotation, b @ rotation, TEMPERATURE), loss)


def test_the_gradient_of_nt_xent_is_that_of_finite_differences():
    a, b = (x.requires_grad_() for x in views(batch=4))
    nt_xent(a, b, TEMPERATURE).backward()
    step = 1e-6  # the loop is exact to double precision; the loss computes in single
    for which, x in enumerate((a, b)):
        numeric = torch.zeros_like(x)
        for index in product(*map(range, x.shape)):
            values = []
            for sign in (1, -1):
                moved = [a.detach().double(), b.detach().double()]
                moved[which] = moved[which].clone()
                moved[which][index] += sign * step
                values.append(slow_nt_xent(*moved, TEMPERATURE))
            numeric[index] = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(x.grad, numeric, rtol=1e-3, atol=1e-6)


def test_autocast_leaves_nt_xent_in_single_precision():
    a, b = views(batch=64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(a, b, 0.05)
    assert torch.equal(loss, nt_xent(a, b, 0.05))


def _worker(rank, workers, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    with distributed.process_group():
        a, b = (distributed.local_shard(x).clone().requires_grad_() for x in views())
        loss = nt_xent(a, b, TEMPERATURE, distributed.shares(BATCH)) * distributed.weight(BATCH)
        loss.backward()
    torch.save((loss.detach(), a.grad, b.grad), f"{folder}/{rank}.pt")
    dist.barrier()  # whoever leaves first closes its connections
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.thorough), 5])
def test_workers_together_are_one_worker_with_the_whole_batch(workers, tmp_path):
    """The mean of the losses, and of the gradients as data parallelism takes it, are those of one worker."""
    group(_worker, (workers, str(tmp_path)), workers)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(workers)]
    a, b = (x.requires_grad_() for x in views())
    loss = nt_xent(a, b, TEMPERATURE)
    loss.backward()
    torch.testing.assert_close(torch.stack([f[0] for f in found]).mean(), loss.detach())
    for i, x in ((1, a), (2, b)):
        # A row's gradient is there once, with its own worker; the others bring zeros to the mean.
        torch.testing.assert_close(torch.cat([f[i] for f in found]) / workers, x.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.log_absolute, (math.log(2) + math.log(4) + 0 + math.log(1.5)) / 4),
        (losses.absolute, (1 + 3 + 0 + 0.5) / 4),
        (losses.squared, (1 + 9 + 0 + 0.25) / 4),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_losses_of_labels_are_their_formulas(loss, expected):
    label = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    prediction = label + torch.tensor([[1.0, -3.0], [0.0, 0.5]])
    assert loss(prediction, label).item() == pytest.approx(expected)
    assert loss(label, prediction).item() == pytest.approx(expected)
    assert loss(label, label).item() == 0


def test_a_censored_label_asks_for_nothing_below_it():
    prediction = torch.tensor([-1.0, 2.0, -1.0, 2.0], requires_grad=True)
    loss = losses.censored(prediction, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx((0 + 2 + 2 + 1) / 4)
    assert (4 * prediction.grad).tolist() == [0, 1, -1, 1]
