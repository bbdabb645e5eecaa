"""How long steps of a model take on a device, found by running some of its layers with made-up weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from statistics import median

import torch
from torch import Tensor

from device.interface import StepInputs
from sophserve.measure.footprint_process import Loader
from sophserve.model.kv_memory import cached_layers
from sophserve.model.layers import CachedModule, PackedModule
from sophserve.model.module import Module

# Bytes of weights that are run where there are as many: more than any cache holds.
_SAMPLE = 1 << 30
_BLOCK = 16
# Seconds for each kind of step.
_PERIOD = 0.5


class Trial:
    """A model on its device of which only some layers are there, at least one of each kind.

    Layers are of a kind if they take as much memory and do as many operations. max_positions: of the longest sequence.
    Raises SophserveError as a server would, and OutOfDeviceMemory.
    """

    def __init__(self, loader: Loader, max_positions: int) -> None:
        whole = loader.load(1)
        sizes, alike = [layer.nbytes for layer in whole.layers], _alike(whole.layers)
        self._counts = [len(each) for each in alike]
        self._chosen = _choose(alike, sizes, _SAMPLE - whole.head.nbytes)
        self._model = loader.made_up({index for each in self._chosen for index in each}, max_positions)
        self._device = loader.device
        self._layers = self._model.layers
        torch.set_num_threads(1)  # as a worker does

    def decode_seconds(self, batch: int, length: int) -> float:
        """Of a step of `batch` decoding sequences that are `length` tokens long with the new one."""
        return self._seconds(batch, 1, length)

    def prefill_seconds(self, length: int) -> float:
        """Of a prompt of `length` tokens and the logits of its last."""
        return self._seconds(1, length, length)

    @torch.inference_mode()
    def _seconds(self, batch: int, count: int, length: int) -> float:
        """Of the whole model's step for the last `count` tokens of `batch` sequences of `length`."""
        inputs = self._inputs(batch, count, length)
        blocks = inputs.block_tables.numel()
        self._model.layers = self._layers
        for layer in cached_layers(self._model):
            layer.kv = self._device.make_kv_cache(blocks, _BLOCK, layer.cache)
            for kept in (layer.kv.keys, layer.kv.values):
                kept.fill_(0.01)  # what was never written takes no memory, and so no time to read
        # Of a kind that is not whole all but one are left out: what stays is more than caches hold, or it is little.
        short = [
            (there - len(chosen), set(chosen[1:] or chosen))
            for there, chosen in zip(self._counts, self._chosen, strict=True)
            if there > len(chosen)
        ]
        found, *without = self._times(inputs, [set(), *(each for _, each in short)])
        more = [max(0.0, found - less) / len(each) * count for (count, each), less in zip(short, without, strict=True)]
        return found + sum(more)

    def _times(self, inputs: StepInputs, left_out: Sequence[set[int]]) -> list[float]:
        """The usual times of steps of the layers that are there, but for some. They take turns, so that what disturbs
        one disturbs all."""
        steps = [self._step(inputs, each) for each in left_out]
        times: list[list[float]] = [[] for _ in steps]
        begin = time.perf_counter()
        while len(times[0]) < 3 or time.perf_counter() - begin < _PERIOD * len(steps):
            for step, taken in zip(steps, times, strict=True):
                start = time.perf_counter()
                step()
                self._device.synchronize()
                taken.append(time.perf_counter() - start)
        return [median(taken[1:]) for taken in times]  # the first one also does what is done once

    def _step(self, inputs: StepInputs, left_out: set[int]) -> Callable[[], object]:
        """What runs one."""
        model, device, last = self._model, self._device, inputs.input_lengths.cumsum(0) - 1
        layers = [each for index, each in enumerate(self._layers) if index not in left_out]
        rows = len(inputs.ids)

        def run() -> Tensor:
            model.layers = layers
            hidden = model(device.prepare(inputs, model.ropes))
            return model.logits(hidden if rows == len(last) else hidden[last])

        replay = device.capture(run, rows) if rows == len(last) else None
        return run if replay is None else lambda: replay(rows)

    def _inputs(self, batch: int, count: int, length: int) -> StepInputs:
        width = -(-length // _BLOCK)
        tables = torch.arange(batch * width, dtype=torch.int32).view(batch, width)
        positions = torch.arange(length - count, length, dtype=torch.int32)
        slots = tables[:, (positions // _BLOCK).long()] * _BLOCK + positions % _BLOCK
        return StepInputs(
            torch.full((batch,), count, dtype=torch.int32),
            torch.full((batch,), length - count, dtype=torch.int32),
            tables,
            slots.flatten().int(),
            length,
            ids=torch.randint(self._model.vocab_size, (batch * count,), dtype=torch.int32),
            positions=positions.repeat(batch),
        )


def _alike(layers: Sequence[Module]) -> list[list[int]]:
    """The layers by their kind."""
    found: dict[Hashable, list[int]] = {}
    for index, layer in enumerate(layers):
        costs = [
            (module.nbytes, module.token_flops) if isinstance(module, PackedModule) else (module.window,)
            for module in layer.modules()
            if isinstance(module, PackedModule | CachedModule)
        ]
        found.setdefault(tuple(costs), []).append(index)
    return list(found.values())


def _choose(alike: Sequence[Sequence[int]], sizes: Sequence[int], most: int) -> list[list[int]]:
    """Of each kind one, then of each in turn another while they have room in so many bytes."""
    chosen = [list(each[:1]) for each in alike]
    left = most - sum(sizes[index] for each in chosen for index in each)
    grown = True
    while grown:
        grown = False
        for each, kind in zip(chosen, alike, strict=True):
            if len(each) < len(kind) and sizes[kind[0]] <= left:
                each.append(kind[len(each)])
                left -= sizes[kind[0]]
                grown = True
    return chosen
