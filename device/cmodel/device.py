"""CmodelDevice: the host CPU as a device."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext

from torch import Tensor

from device.cmodel.capture import record
from device.cmodel.experts import ExpertPanels
from device.cmodel.kernel_profile import KernelProfile
from device.cmodel.kernels import load_kernels, native_library
from device.cmodel.kv_cache import native_cache, paired_cache
from device.cmodel.latent import LatentUpPanels
from device.cmodel.memory import host_memory
from device.cmodel.ops import NativeOps
from device.cmodel.torch_ops import TorchOps
from device.cmodel.weights import LAYOUT, PANEL, QuantizedWeight, TorchWeight, pack
from device.cpus import thread_count
from device.host import HostDevice
from device.interface import (
    AvailableDevice,
    CacheSpec,
    CanonicalWeight,
    DenseWeight,
    ExpertsWeight,
    KVCache,
    LatentUpWeight,
    Ops,
    OutOfDeviceMemory,
    PackedWeight,
    Role,
    UnsupportedOperator,
)
from device.operator_profile import OperatorRecorder
from device.reference import ReferenceOps, canonical_shape, reference_weight


class CmodelDevice(HostDevice):
    """The host CPU.

    `CMODEL_FAST_EXEC=0` in the environment computes everything with `device.reference`; `CMODEL_ISA` chooses the
    instruction set of the kernels. Raises RuntimeError for a library or a CMODEL_ISA that cannot be used.
    """

    name = "cmodel"
    operators = frozenset(name for name in vars(Ops) if not name.startswith("_"))  # all

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self._fast = os.environ.get("CMODEL_FAST_EXEC", "1") != "0"
        self._kernels = load_kernels(thread_count()) if self._fast else None
        # By instruction set and not by measuring, so that every start computes the same bits.
        self.fast_in_int8 = self._kernels is not None and not self._kernels.reads_pairs
        self.layout = LAYOUT if self._kernels is not None else ""
        self.ops: Ops = NativeOps(self._kernels) if self._kernels else TorchOps() if self._fast else ReferenceOps()

    @staticmethod
    def available() -> list[AvailableDevice]:
        """The host, which is there always."""
        return [AvailableDevice(0, f"this machine's CPU ({platform.machine()})", host_memory()[1])]

    def describe(self) -> str:
        """One line for the log: what computes, and what would be faster."""
        if not self._fast:
            return "cmodel: the reference operators, as CMODEL_FAST_EXEC=0 asks; slow"
        if self._kernels is None:
            return (
                "cmodel: torch's operators, which are slow here, for sophserve was installed without its native "
                "library; install a C++ compiler such as g++ and reinstall sophserve"
            )
        threads = self._kernels.threads
        return f"cmodel: {self._kernels.isa} kernels on {threads} thread{'s' if threads > 1 else ''}"

    def memory(self) -> tuple[int, int]:
        """Bytes (free, in all), of the host or of the control group that this process is in."""
        return host_memory()

    def pack(self, weight: CanonicalWeight | ExpertsWeight | LatentUpWeight, role: Role = "other") -> PackedWeight:
        """Copy a weight into the kernels' layout. Without the native library there are dense weights only."""
        if not self._fast:
            return reference_weight(weight)
        if isinstance(weight, ExpertsWeight) and self._kernels is not None:
            return ExpertPanels(self._kernels, weight)
        if isinstance(weight, LatentUpWeight) and self._kernels is not None:
            return LatentUpPanels(self._kernels, weight)
        if isinstance(weight, ExpertsWeight | LatentUpWeight) or (role == "router" and self._kernels is None):
            return reference_weight(weight)
        if role == "embedding" and isinstance(weight, DenseWeight):
            return TorchWeight(weight.values)
        if self._kernels is not None:
            # Each thread fills those panels of both halves that it will read.
            gated = role == "gate_up" and canonical_shape(weight)[0] % (2 * PANEL) == 0
            return pack(self._kernels, [weight], halves=2 if gated else 1)
        if not isinstance(weight, DenseWeight):
            raise UnsupportedOperator(
                f"cmodel has no native library, and so no kernel for {type(weight).__name__}; install a C++ compiler "
                "such as g++ and reinstall sophserve"
            )
        return TorchWeight(weight.values)

    def state_of(self, weight: PackedWeight) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        return weight.state() if isinstance(weight, QuantizedWeight | ExpertPanels) else None

    def restore(self, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> PackedWeight:
        return (ExpertPanels if "experts" in numbers else QuantizedWeight).restore(numbers, tensors)

    def make_kv_cache(self, blocks: int, block_size: int, spec: CacheSpec) -> KVCache:
        """An uninitialised cache; pages of it that are never written cost no memory."""
        try:
            kv: KVCache | None = None
            if spec.latent:
                kv = super().make_kv_cache(blocks, block_size, spec)
            elif self._kernels is not None and self._kernels.reads_pairs:
                kv = paired_cache(blocks, block_size, spec)
            kv = kv or native_cache(blocks, block_size, spec)
        except RuntimeError as error:
            size = blocks * block_size * spec.token_bytes
            raise OutOfDeviceMemory(f"a KV cache of {size / 2**30:.1f} GiB does not fit in memory") from error
        if self._kernels is not None:
            for cache in (kv.keys, kv.values):
                self._kernels.prefer_huge_pages(cache.data_ptr(), cache.nbytes)
        return kv

    def capture(self, fn: Callable[[], Tensor], rows: int) -> Callable[[int], Tensor] | None:
        library = native_library() if self._kernels else None
        if library is None:
            return None
        with self._recorder.paused() if self._recorder else nullcontext():
            return record(library, fn, rows)

    def _make_recorder(self, mode: int) -> OperatorRecorder:
        return KernelProfile(self.ops, self.operators, detailed=mode == 2)
