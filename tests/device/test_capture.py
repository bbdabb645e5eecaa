"""Recording a function's kernels and running them again."""

import pytest
import torch

from device.interface import CacheSpec, DenseWeight


class Layer:
    """Norm, product, attention and MLP on buffers, as a layer of a model calls them."""

    def __init__(self, device, rows, dtype, decode_inputs, make_rope, fill_cache):
        torch.manual_seed(0)
        self.device, self.ops = device, device.ops
        pack = lambda *shape: device.pack(DenseWeight(torch.randn(shape).to(dtype) / 8))  # noqa: E731
        self.table = pack(90, 64)
        self.qkv, self.output = pack(64 + 2 * 32, 64), pack(64, 64)
        self.gate_up, self.down = pack(2 * 45, 64), pack(64, 45)
        self.weight = torch.rand(64).to(dtype)
        self.head_weight = torch.rand(16).to(dtype)
        self.kv = device.make_kv_cache(rows * 3, 16, CacheSpec(2, (16, 16), dtype))
        fill_cache(self.kv)
        self.rope = make_rope(16)
        self.inputs = decode_inputs(torch.randint(40, (rows,)).tolist(), rows * 3, 16)
        self.ids = self.inputs.ids.copy_(torch.randint(90, (rows,)))

    def __call__(self):
        ops, step = self.ops, self.device.prepare(self.inputs, [self.rope])
        x = ops.embedding(step.ids, self.table)
        y, residual = ops.rms_norm(x, self.weight, 1e-6)
        q, k, v = (part.unflatten(-1, (-1, 16)) for part in ops.linear(y, self.qkv).split([64, 32, 32], dim=-1))
        q, _ = ops.rms_norm(q, self.head_weight, 1e-6)
        y = ops.paged_attention(q, k, v, self.kv, step, self.rope, 0.25).flatten(-2)
        y, residual = ops.rms_norm(ops.linear(y, self.output), self.weight, 1e-6, residual)
        return ops.gated_mlp(y, self.gate_up, self.down, "silu")


@pytest.fixture
def layer(decode_inputs, make_rope, fill_cache):
    return lambda device, rows, dtype: Layer(device, rows, dtype, decode_inputs, make_rope, fill_cache)


def test_a_replay_has_the_bits_of_the_function(cmodel, dtype, layer):
    fn = layer(cmodel, 20, dtype)
    replay = cmodel.capture(fn, 20)
    cache = fn.kv.keys.clone()
    for rows in (20, 1, 7, 20):
        fn.kv.keys.copy_(cache)
        expected = fn()
        fn.kv.keys.copy_(cache)
        assert torch.equal(replay(rows), expected[:rows])
        fn.ids.copy_(torch.randint(90, (20,)))
        # Other positions in the same blocks: the rotations are gathered anew.
        fn.inputs.cached_lengths.copy_(fn.inputs.cached_lengths // 16 * 16 + torch.randint(16, (20,)))
        fn.inputs.slot_mapping.copy_(fn.inputs.slot_mapping // 16 * 16 + fn.inputs.cached_lengths % 16)


def test_recording_runs_nothing(native, layer):
    fn = layer(native, 4, torch.float32)
    keys = fn.kv.keys.clone()
    replay = native.capture(fn, 4)
    assert torch.equal(fn.kv.keys, keys)
    replay(2)
    changed = (fn.kv.keys != keys).flatten(1).any(1).sum()
    assert 1 <= changed <= 2


def test_what_torch_computes_is_not_recorded(native):
    weight = native.pack(DenseWeight(torch.ones(8, 4)))
    x = torch.ones(3, 4)
    assert native.capture(lambda: native.ops.linear(x, weight), 3) is not None
    for fn in (
        lambda: native.ops.linear(x + 1, weight),
        lambda: native.ops.linear(x, weight).float().neg_(),
        lambda: native.ops.linear(x.T.contiguous().view(3, 4), weight),
        lambda: native.ops.linear(x[: int(x.sum()) - 9], weight),
        lambda: native.ops.linear(torch.zeros(3, 4), weight),
    ):
        assert native.capture(fn, 3) is None


def test_kernels_that_do_not_take_rows_by_themselves_are_not_recorded(native, sample_params):
    logits, params = torch.randn(3, 50), sample_params(3)
    assert native.capture(lambda: native.ops.sample(logits, params).token_ids, 3) is None


def test_a_replay_that_fails_says_why(native, decode_inputs, make_rope):
    kv = native.make_kv_cache(4, 16, CacheSpec(1, (16, 16), torch.float32))
    q, inputs = torch.randn(2, 1, 16), decode_inputs([3, 5], 4, 16)
    rope = make_rope(16)

    def fn():
        return native.ops.paged_attention(q, q, q, kv, native.prepare(inputs, [rope]), rope, 1.0)

    replay = native.capture(fn, 2)
    replay(2)
    inputs.block_tables[0, 0] = 4
    with pytest.raises(ValueError, match="paged_attention"):
        replay(2)


def test_an_error_while_recording_leaves_nothing_behind(native):
    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        native.capture(fail, 1)
    weight = native.pack(DenseWeight(torch.ones(8, 4)))
    assert native.ops.linear(torch.ones(1, 4), weight).eq(4).all()
