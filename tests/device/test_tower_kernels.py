"""What vision towers compute with, on every instruction set, against the reference, over random shapes."""

import random
from typing import get_args

import pytest
import torch

from device.interface import Activation, DenseWeight
from device.reference import ReferenceOps, ReferenceWeight, activate
from tests.device.closeness import assert_close
from tests.device.test_quantized_kernels import random_weight

REFERENCE = ReferenceOps()
ACTIVATIONS = get_args(Activation)
DTYPES = (torch.bfloat16, torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(params=[40, pytest.param(240, marks=pytest.mark.slow)], ids="{} shapes".format)
def draws(request):
    """A random generator and a dtype for each shape; sizes are often small, and now and then large."""
    torch.manual_seed(0)
    return [(random.Random(seed), DTYPES[seed % 4]) for seed in range(request.param)]


def size(generator, most):
    return max(1, int(most ** generator.random()))


def test_layer_norm(cmodel, draws):
    for generator, dtype in draws:
        case = rows, dim = size(generator, 80), size(generator, 5000)
        # Cut from wider rows, and far from 0.
        x = (torch.randn(rows, dim + 3) + generator.choice([0, 0, 20])).to(dtype)[:, 2 : dim + 2]
        weight = torch.randn(dim).to(generator.choice([dtype, torch.float32]))
        bias = torch.randn(dim).to(generator.choice([weight.dtype, torch.float32]))
        expected = REFERENCE.layer_norm(x, weight, bias, 1e-5)
        assert_close(cmodel.ops.layer_norm(x, weight, bias, 1e-5), expected, (dtype, case))


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 15), (2, 5, 64), (17, 1152)], ids=str)
def test_layer_norm_of_any_shape(cmodel, dtype, shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[-1]), torch.randn(shape[-1])
    assert_close(cmodel.ops.layer_norm(x, weight, bias, 1e-6), REFERENCE.layer_norm(x, weight, bias, 1e-6))


def test_layer_norm_of_values_that_hardly_differ(cmodel):
    """The variance is that of differences from the mean, not a difference of means."""
    torch.manual_seed(0)
    x = 100 + torch.randn(5, 700) / 10
    expected = torch.nn.functional.layer_norm(x.double(), (700,)).float()
    result = cmodel.ops.layer_norm(x, torch.ones(700), torch.zeros(700), 1e-5)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-2)


def test_linear_with_an_activation(cmodel, draws):
    for generator, dtype in draws:
        rows, inputs, outputs = size(generator, 150), size(generator, 2000), size(generator, 600)
        activation, with_bias = generator.choice(ACTIVATIONS), generator.random() < 0.7
        case = dtype, rows, inputs, outputs, activation, with_bias
        x, values = torch.randn(rows, inputs).to(dtype), (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
        bias = torch.randn(outputs).to(dtype) if with_bias else None
        expected = REFERENCE.linear(x, ReferenceWeight(DenseWeight(values)), bias, activation)
        assert_close(cmodel.ops.linear(x, cmodel.pack(DenseWeight(values)), bias, activation), expected, case)


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
def test_quantized_linear_with_an_activation(cmodel, draws, kind):
    for seed, (generator, dtype) in enumerate(draws):
        rows, inputs, outputs = size(generator, 60), 2 * size(generator, 300), size(generator, 200)
        activation = generator.choice(ACTIVATIONS)
        weight = random_weight(kind, outputs, inputs, seed)
        x = torch.randn(rows, cmodel.pack(weight).in_features).to(dtype)
        bias = torch.randn(outputs).to(dtype) if seed % 2 else None
        expected = REFERENCE.linear(x, ReferenceWeight(weight), bias, activation)
        assert_close(cmodel.ops.linear(x, cmodel.pack(weight), bias, activation), expected, (dtype, inputs, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_takes_the_product_before_it_is_rounded(cmodel, activation):
    """Rounded twice, a tenth of the results would be off by a unit of bfloat16."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 64).bfloat16(), torch.randn(160, 64).bfloat16(), torch.randn(160).bfloat16()
    result = cmodel.ops.linear(x, cmodel.pack(DenseWeight(weight)), bias, activation)
    exact = activate(x.double() @ weight.double().T + bias.double(), activation)
    kept = exact.abs() > 0.01  # where an approximation is exact to the last bits of float32
    assert (result != exact.bfloat16())[kept].float().mean() < 0.01


def test_gated_mlp_with_biases(cmodel, draws):
    for generator, dtype in draws:
        rows, hidden, inner = size(generator, 100), size(generator, 400), size(generator, 600)
        inner = generator.choice([inner, -(-inner // 32) * 32])
        activation = generator.choice(ACTIVATIONS)
        biases = [torch.randn(n).to(dtype) if generator.random() < 0.7 else None for n in (2 * inner, hidden)]
        case = dtype, rows, hidden, inner, activation, [bias is not None for bias in biases]
        x = torch.randn(rows, hidden).to(dtype)
        weights = [torch.randn(2 * inner, hidden) / hidden**0.5, torch.randn(hidden, inner) / inner**0.5]
        canonical = [DenseWeight(weight.to(dtype)) for weight in weights]
        expected = REFERENCE.gated_mlp(x, *map(ReferenceWeight, canonical), activation, *biases)
        assert_close(cmodel.ops.gated_mlp(x, *map(cmodel.pack, canonical), activation, *biases), expected, case)


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
@pytest.mark.parametrize("intermediate", [64, 90])
def test_quantized_gated_mlp_with_biases(cmodel, dtype, kind, intermediate):
    torch.manual_seed(0)
    for seed, rows in enumerate((1, 7, 40)):
        gate_up = random_weight(kind, 2 * intermediate, 128, seed)
        down = random_weight(kind, 50, intermediate, seed)
        biases = [torch.randn(2 * intermediate).to(dtype), torch.randn(50).to(dtype)]
        x = torch.randn(rows, 128).to(dtype) / 8
        expected = REFERENCE.gated_mlp(x, ReferenceWeight(gate_up), ReferenceWeight(down), "quick_gelu", *biases)
        result = cmodel.ops.gated_mlp(x, cmodel.pack(gate_up), cmodel.pack(down), "quick_gelu", *biases)
        assert_close(result, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_range(cmodel, activation):
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([-1e30, 1e30, 0.0, -0.0, 1e-20])])[:, None]
    result = cmodel.ops.linear(x, cmodel.pack(DenseWeight(torch.ones(1, 1))), None, activation)
    # In float32 torch's own are as far off on some machines.
    torch.testing.assert_close(result, activate(x.double(), activation).float(), rtol=2e-6, atol=3e-7)


def tower_layer(device, dtype):
    """The norm and the MLPs of a tower's layer, a function of x `[rows, 72]`."""
    pack = lambda *shape: device.pack(DenseWeight((torch.randn(shape) / 8).to(dtype)))  # noqa: E731
    up, down, gate_up = pack(100, 72), pack(72, 100), pack(192, 72)
    weight, bias, up_bias, gate_up_bias = (torch.randn(n).to(dtype) for n in (72, 72, 100, 192))
    last = pack(72, 96)

    def layer(x, ops=device.ops):
        y = ops.layer_norm(x, weight, bias, 1e-5)
        y = ops.linear(ops.linear(y, up, up_bias, "quick_gelu"), down, bias)
        return ops.gated_mlp(y, gate_up, last, "quick_gelu", gate_up_bias, bias)

    return layer


def test_a_row_has_the_same_bits_alone(cmodel, dtype):
    torch.manual_seed(0)
    layer, x = tower_layer(cmodel, dtype), torch.randn(600, 72).to(dtype)
    whole = layer(x)
    for start, count in ((0, 1), (599, 1), (3, 2), (100, 13), (90, 17), (50, 45), (30, 300)):
        assert torch.equal(layer(x[start : start + count]), whole[start : start + count])


def test_a_replay_has_the_bits_of_the_layer(cmodel, dtype):
    torch.manual_seed(0)
    layer, x = tower_layer(cmodel, dtype), torch.randn(20, 72).to(dtype)
    replay = cmodel.capture(lambda: layer(x), 20)
    assert replay is not None
    for rows in (20, 3):
        assert torch.equal(replay(rows), layer(x)[:rows])
        x.copy_(torch.randn(20, 72))
