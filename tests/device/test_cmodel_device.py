"""The device itself: how it is chosen, found and described, its memory, its threads, its end."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from device.cmodel import kernels, memory
from device.cmodel.device import CmodelDevice
from device.cmodel.torch_ops import TorchOps
from device.interface import CacheSpec, DenseWeight, Device, IntWeight, OutOfDeviceMemory
from device.reference import ReferenceOps

ROOT = Path(__file__).parents[2]


def run_python(code, **environment):
    """Run code in a fresh interpreter."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "3"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


def multiply(device):
    weight = device.pack(DenseWeight(torch.ones(200, 64)))
    return device.ops.linear(torch.ones(3, 64), weight)


def test_it_has_the_operators_that_it_names(native):
    assert native.operators
    for name in native.operators:
        assert callable(getattr(native.ops, name))
    assert isinstance(native.name, str) and native.uses_host_memory
    device: Device = native
    device.synchronize()


def test_description(native, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert any(CmodelDevice().describe() == f"cmodel: {isa} kernels on 2 threads" for isa in kernels.ISAS)


def test_fast_exec_off_computes_with_the_reference(monkeypatch):
    monkeypatch.setenv("CMODEL_FAST_EXEC", "0")
    device = CmodelDevice()
    assert type(device.ops) is ReferenceOps and "CMODEL_FAST_EXEC=0" in device.describe()
    assert multiply(device).eq(64).all()
    int4 = IntWeight(
        torch.full((4, 16), 0x21, dtype=torch.uint8), torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.uint8), 32
    )
    assert device.ops.linear(torch.ones(1, 32), device.pack(int4)).eq(48).all()


def test_without_the_library_torch_computes_and_the_log_says_what_to_do(monkeypatch, make_meta, make_rope):
    monkeypatch.setattr(kernels, "native_library", lambda: None)
    device = CmodelDevice()
    assert type(device.ops) is TorchOps
    assert "install a C++ compiler such as g++ and reinstall" in device.describe()
    torch.manual_seed(0)
    x, bias = torch.randn(5, 64), torch.randn(96)
    gate_up, down = torch.randn(192, 64), torch.randn(64, 96)
    packed_gate_up, packed_down = device.pack(DenseWeight(gate_up)), device.pack(DenseWeight(down))
    torch.testing.assert_close(device.ops.linear(x, device.pack(DenseWeight(down.T)), bias), x @ down + bias)
    gate, up = (x @ gate_up.T).chunk(2, dim=1)
    expected = (torch.nn.functional.silu(gate) * up) @ down.T
    torch.testing.assert_close(
        device.ops.gated_mlp(x, packed_gate_up, packed_down, "silu"), expected, rtol=1e-4, atol=1e-3
    )
    kv = device.make_kv_cache(3, 8, CacheSpec(2, (16, 16), torch.float32))
    q = torch.randn(9, 4, 16)
    out = device.ops.paged_attention(q, q[:, :2], q[:, 2:], kv, make_meta([(0, 9)], 3, 8), make_rope(16), 0.25)
    assert out.isfinite().all()


@pytest.mark.parametrize("fast", ["1", "0"], ids=["kernels", "reference"])
@pytest.mark.parametrize("sizes", [(16, 16, 16), (8, 16, 16), (16, 24, 8)], ids=str)
def test_blocks_come_back_wherever_they_are_written(monkeypatch, make_meta, make_rope, dtype, fast, sizes):
    """What a sequence sees is the same once its blocks are copied to others, of another cache."""
    monkeypatch.setenv("CMODEL_FAST_EXEC", fast)
    block_size, key_dim, value_dim = sizes
    device, ends = CmodelDevice(), []
    torch.manual_seed(0)
    q, k = torch.randn(2, 41, 4, key_dim).to(dtype)
    v = torch.randn(41, 2, value_dim).to(dtype)
    kept = []
    for seed in (1, 2):
        kv = device.make_kv_cache(12, block_size, CacheSpec(2, (key_dim, value_dim), dtype))
        meta = make_meta([(0, 40)], 12, block_size, seed)
        blocks = meta.block_tables[0].tolist()
        if kept:
            device.write_blocks(kv, blocks, kept[0])
            assert torch.equal(device.read_blocks(kv, blocks[::-1]), kept[0].flip(0))
        else:
            rows = slice(0, 40)
            device.ops.paged_attention(q[rows], k[rows, :2], v[rows], kv, meta, make_rope(8), 0.25)
            kept.append(device.read_blocks(kv, blocks))
            spec = CacheSpec(2, (key_dim, value_dim), dtype)
            assert kept[0].dtype == torch.uint8 and kept[0].shape == (len(blocks), block_size * spec.token_bytes)
        step = make_meta([(39, 1)], 12, block_size, seed)
        ends.append(device.ops.paged_attention(q[39:40], k[39:40, :2], v[39:40], kv, step, make_rope(8), 0.25))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("count", "role", "ranks", "replicate", "shares"),
    [
        (14, "qkv", 2, False, [(0, 7), (7, 14)]),
        (2, "qkv", 4, True, [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (7, "head", 3, False, [(0, 3), (3, 6), (6, 7)]),
        (14, "attention_output", 4, False, None),
        (2, "gate_up", 4, False, None),
        (3, "qkv", 4, True, None),
        (4, "embedding", 3, False, None),
    ],
)
def test_shares(native, count, role, ranks, replicate, shares):
    found = [native.shard(count, role, rank, ranks, replicate=replicate) for rank in range(ranks)]
    assert found == ([slice(*share) for share in shares] if shares else [None] * ranks)


def test_a_step_is_prepared_for_several_ropes(cmodel, dtype, decode_inputs, make_rope, fill_cache):
    """Attention reads what was gathered, and gives what it gives where it gathers itself."""
    torch.manual_seed(0)
    inputs, ropes = decode_inputs([3, 17, 0, 9], 8, 16), [make_rope(16), make_rope(8, interleaved=True)]
    step = cmodel.prepare(inputs, ropes)
    q, kv = torch.randn(4, 2, 16).to(dtype), cmodel.make_kv_cache(8, 16, CacheSpec(2, (16, 16), dtype))
    fill_cache(kv)
    for rope in ropes:
        cos, sin = step.rotations[rope]
        assert torch.equal(cos, rope.cos[[3, 17, 0, 9]]) and torch.equal(sin, rope.sin[[3, 17, 0, 9]])
        prepared, own = (cmodel.ops.paged_attention(q, q, q, kv, each, rope, 1.0) for each in (step, inputs))
        assert torch.equal(prepared, own)
    with pytest.raises(ValueError, match="ids must be in"):
        cmodel.prepare(inputs, [make_rope(16, positions=17)])


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("CMODEL_ISA", "sse9")
    with pytest.raises(RuntimeError, match="CMODEL_ISA is 'sse9'; set it to one of amx, avx512bf16, "):
        CmodelDevice()


def test_an_instruction_set_that_the_cpu_lacks_is_refused(native, monkeypatch):
    monkeypatch.setattr(kernels, "usable_isas", lambda _: ["portable"])
    monkeypatch.setenv("CMODEL_ISA", "avx2")
    with pytest.raises(RuntimeError, match="which this CPU or this build lacks; set it to one of portable"):
        CmodelDevice()


@pytest.fixture
def fresh_library(monkeypatch):
    kernels.native_library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    kernels.native_library.cache_clear()


def test_a_library_of_another_version_is_refused(native, fresh_library):
    fresh_library.setattr(kernels, "ABI_VERSION", 12345)
    with pytest.raises(RuntimeError, match="this sophserve needs 12345; reinstall sophserve"):
        CmodelDevice()


def test_a_broken_library_is_refused(fresh_library, tmp_path):
    (tmp_path / kernels.FILE_NAME).write_bytes(b"not a library")
    fresh_library.setattr("device.cmodel.__path__", [str(tmp_path)])
    with pytest.raises(RuntimeError, match=r"does not load .*; reinstall sophserve"):
        CmodelDevice()


def test_a_cache_that_does_not_fit_in_memory(native):
    with pytest.raises(OutOfDeviceMemory, match="GiB does not fit in memory"):
        native.make_kv_cache(2**40, 16, CacheSpec(8, (128, 128), torch.bfloat16))


def test_cache_shapes(native):
    kv = native.make_kv_cache(5, 16, CacheSpec(2, (24, 8), torch.float16))
    assert kv.keys.shape == (5, 16, 2, 24) and kv.values.shape == (5, 16, 2, 8)
    assert kv.keys.dtype == kv.values.dtype == torch.float16


def test_an_untouched_cache_costs_no_memory(native):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    kv = native.make_kv_cache(2048, 16, CacheSpec(8, (128, 128), torch.bfloat16))
    assert kv.keys.nbytes == 2**26 and resident() - before < 2**24


def test_the_plugin_registers_the_device_without_importing_torch_until_asked():
    code = """
import sys
from device.cmodel import plugin
assert "torch" not in sys.modules
found = {}
plugin.register_devices(found.__setitem__)
assert found["cmodel"].name == "cmodel"
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


# --- memory ---


def write_tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 800 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (800 * 1024, 1000 * 1024)),
        # version 2: the group above has the tighter limit; its inactive page cache is free
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/a/b/memory.max": "max\n",
                "sys/a/b/memory.current": "300000\n",
                "sys/a/b/memory.stat": "anon 1\ninactive_file 100\n",
                "sys/a/memory.max": "600000\n",
                "sys/a/memory.current": "400000\n",
                "sys/a/memory.stat": "anon 1\ninactive_file 50000\n",
            },
            (250000, 600000),
        ),
        # version 2 in a container, which sees its own group as the root
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/memory.max": "500000\n",
                "sys/memory.current": "600000\n",
                "sys/memory.stat": "inactive_file 0\n",
            },
            (0, 500000),
        ),
        # version 1, mounted as the container's own root: the path of the host is not there
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/123\n",
                "sys/memory/memory.limit_in_bytes": "700000\n",
                "sys/memory/memory.usage_in_bytes": "100000\n",
                "sys/memory/memory.stat": "total_inactive_file 40000\n",
            },
            (640000, 700000),
        ),
        # version 1 without a limit: a number beyond any memory
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/memory/memory.usage_in_bytes": "100000\n",
                "sys/memory/memory.stat": "total_inactive_file 0\n",
            },
            (800 * 1024, 1000 * 1024),
        ),
    ],
    ids=["no groups", "version 2", "version 2 in a container", "version 1", "version 1 without a limit"],
)
def test_memory(tmp_path, files, expected):
    write_tree(tmp_path, MEMINFO | files)
    assert memory.host_memory(tmp_path / "proc", tmp_path / "sys") == expected


def test_memory_of_this_host(native):
    free, total = native.memory()
    assert 0 < free <= total


# --- threads ---


SETUP = """
import os, sys, threading, time
import torch
from device.cmodel.device import CmodelDevice
from device.interface import DenseWeight
device = CmodelDevice()
weight = device.pack(DenseWeight(torch.ones(4000, 64)))
def multiply():
    assert device.ops.linear(torch.ones(3, 64), weight).eq(64).all()
multiply()
"""


def test_threads_stay_where_they_are_put(native):
    allowed = sorted(os.sched_getaffinity(0))
    wanted = [(allowed[0],), (allowed[-1],), (allowed[-1],)]
    put = f"import device.cmodel.kernels; device.cmodel.kernels.places = lambda threads: {wanted}\n"
    ask = "print(*(sorted(os.sched_getaffinity(int(task))) for task in sorted(os.listdir('/proc/self/task'), key=int)))"
    result = run_python(put + SETUP + ask)
    assert result.returncode == 0, result.stderr
    # The main thread stays where it was; torch has others, which do as well.
    assert result.stdout.split("[")[1].startswith(", ".join(map(str, allowed)))
    assert result.stdout.count(f"[{allowed[-1]}]") == 2


# Children of one process that has imported torch: each computes, and does and ends as the line says.
ENDS = {
    "by itself": "",
    "by exit": "sys.exit(0)",
    "at once": "os._exit(0)",
    "while a thread computes": "threading.Thread(target=multiply).start()",
    # One thread that spins would use up the whole second.
    "after idling": "begin = time.process_time(); time.sleep(1); sys.exit(time.process_time() - begin > 0.1)",
    "after a child of its own": "child = os.fork(); multiply(); sys.exit(child and os.waitpid(child, 0)[1])",
}
FORKS = """
import os, torch
for name, end in ENDS.items():
    if os.fork() == 0:
        break
    status = os.waitstatus_to_exitcode(os.wait()[1])
    assert status == 0, f"the child that ends {name} has status {status}"
else:
    os._exit(0)
"""


def test_processes_idle_and_end_cleanly(native):
    result = run_python(f"ENDS = {ENDS!r}\n{FORKS}{SETUP}exec(end)")
    assert (result.returncode, result.stderr) == (0, "")


def test_calls_from_many_threads_at_once(native):
    torch.manual_seed(0)
    weight, x = native.pack(DenseWeight(torch.randn(300, 80))), torch.randn(4, 50, 80)
    expected = [native.ops.linear(rows, weight) for rows in x]
    wrong = []

    def work(rows, result):
        for _ in range(100):
            if not torch.equal(native.ops.linear(rows, weight), result):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(x, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
