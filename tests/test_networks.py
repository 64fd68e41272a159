"""What the encoders promise: symmetry, reach, and the sizes of the published networks."""

import pytest
import torch

from sibcl_ray.learning.networks import Architecture, InvariantEncoder, Network, ReferenceEncoder, perceptron
from sibcl_ray.symmetry import Translations

SMALL = {
    "reference": ReferenceEncoder(channels=(4, 8), kernel=3, pools=(2, 4), head=8, latent=8),
    "invariant": InvariantEncoder(channels=4, dilations=(1, 2, 4), latent=8),
}


SQUARE = (16, 16), (True, True)  # a grid, and whether its axes are periodic


def built(encoder, inputs=1, seed=0):
    """The encoder with random weights, and running statistics that are not the trivial ones."""
    torch.manual_seed(seed)
    module = encoder.build(inputs, *SQUARE)
    module(torch.rand(16, inputs, 16, 16))
    return module.eval()


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def shifted(x, seed=0):
    group = Translations(x.shape[-1])
    return group.act(group.draw(x, torch.Generator().manual_seed(seed)), x)


def change(encoder, dtype=torch.float64):
    """The largest relative change of the representation when its input is translated."""
    x = torch.rand(6, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(2))
    module = built(encoder).to(dtype)
    with torch.no_grad():
        before, after = module(x[:, None]), module(shifted(x)[:, None])
    return ((after - before).abs().amax() / before.abs().amax()).item()


def test_the_invariant_encoder_does_not_see_translations():
    assert change(SMALL["invariant"]) < 1e-12
    assert change(InvariantEncoder(), torch.float32) < 1e-4


def test_the_reference_encoder_does():
    assert change(SMALL["reference"]) > 1e-3


@pytest.mark.parametrize(
    ("dilations", "size", "reaches"),
    [
        (InvariantEncoder().dilations, 32, True),
        ((1, 2, 4), 32, False),  # 2 + 7 pixels to either side, and half the period is 16
        ((1, 2, 4), 18, True),
    ],
)
def test_the_receptive_field_reaches_the_period(dilations, size, reaches):
    """Whether, before the global average, a place depends on every pixel of the cell."""
    module = built(InvariantEncoder(channels=8, dilations=dilations)).double()
    x = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    module.layers(torch.relu(module.stem(x)))[0, :, 0, 0].sum().backward()
    assert bool((x.grad != 0).all()) == reaches


DEEP = ReferenceEncoder(channels=(64, 256, 256, 256), pools=(2, 2, 2, 2), head=256, latent=256)
PUBLISHED = {  # encoder, dimensions, predictor, parameters of both in millions: the projector is not counted
    "density of states": (ReferenceEncoder(), 2, ((1024, 1024, 512), 400, 1), 8.2),
    "bands": (ReferenceEncoder(kernel=9, head=256), 2, ((256, 512, 512), 625, 6), 12.8),
    "Schrödinger": (ReferenceEncoder(head=256, latent=256), 2, ((256, 256, 32), 1, 1), 4.3),
    "Schrödinger in 3D": (DEEP, 3, ((256, 256, 32), 1, 1), 50.9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_reference_networks_have_their_published_sizes(name):
    encoder, dimensions, (hidden, outputs, branches), millions = PUBLISHED[name]
    predictors = [perceptron(encoder.latent, hidden, outputs) for _ in range(branches)]
    assert parameters(encoder.build(1, (32,) * dimensions, (True,) * dimensions), *predictors) / 1e6 == pytest.approx(
        millions, abs=0.05
    )


def test_the_default_architecture_is_the_published_one():
    network = Network(Architecture(), 1, 400, *SQUARE)
    assert parameters(network.encoder, network.predictor) == 8_160_336
    assert parameters(network.projector) == 3_414_272


def test_width_scales_every_layer_and_nothing_else():
    half = ReferenceEncoder().scaled(0.5)
    assert half == ReferenceEncoder(channels=(32, 128, 128), head=512, latent=512)
    assert ReferenceEncoder().scaled(1) == ReferenceEncoder()
    weights = [p.numel() for p in half.build(1, *SQUARE).parameters() if p.ndim > 1]
    whole = [p.numel() for p in ReferenceEncoder().build(1, *SQUARE).parameters() if p.ndim > 1]
    assert [w / h for h, w in zip(weights, whole, strict=True)] == [2, 4, 4, 4, 4]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("inputs", [1, 3])
def test_a_network_maps_any_batch_to_labels_and_projections(name, inputs):
    architecture = Architecture(encoder=SMALL[name], predictor=(8,), projector=(8,), projection=4)
    network = Network(architecture, inputs, 6, *SQUARE).eval()
    x = torch.rand(5, inputs, 16, 16)
    assert network(x).shape == (5, 6) and network(x, project=True).shape == (5, 4)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]))  # samples do not see each other


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_takes_part(name):
    architecture = Architecture(encoder=SMALL[name], predictor=(8,), projector=(8,), projection=4)
    network = Network(architecture, 1, 6, *SQUARE)
    x = torch.rand(8, 1, 16, 16)
    (network(x).square().sum() + network(x, project=True).square().sum()).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


def test_a_silent_channel_has_a_gradient():
    """The slope of a standard deviation is infinite where nothing varies."""
    module = SMALL["invariant"].build(1, *SQUARE)
    x = torch.zeros(4, 1, 16, 16, requires_grad=True)
    module(x).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReferenceEncoder(channels=(8, 8)), "got 2 channels and 3 pools"),
        (lambda: ReferenceEncoder(channels=(), pools=()), "give at least one convolution"),
        (lambda: ReferenceEncoder(channels=(0, 8, 8)), "channels is (0, 8, 8); it must be 1 or larger"),
        (lambda: ReferenceEncoder(pools=(2, 0, 2)), "pools is (2, 0, 2)"),
        (lambda: ReferenceEncoder(kernel=4), "kernel is 4; an odd side"),
        (lambda: ReferenceEncoder(kernel=-1), "kernel is -1; it must be 1 or larger"),
        (lambda: ReferenceEncoder(latent=0), "latent is 0"),
        (lambda: ReferenceEncoder().scaled(0.001), "channels is (0, 0, 0)"),
        (lambda: InvariantEncoder(dilations=()), "give at least one"),
        (lambda: InvariantEncoder(dilations=(1, 0)), "dilations is (1, 0)"),
        (lambda: InvariantEncoder(channels=0), "channels is 0"),
        (lambda: Architecture(projection=0), "projection is 0"),
        (lambda: Architecture(predictor=(8, -1)), "predictor is (8, -1)"),
    ],
)
def test_bad_configurations_say_so_in_a_line(make, message):
    with pytest.raises(ValueError) as raised:
        make()
    assert message in str(raised.value) and "\n" not in str(raised.value)
