"""The instructions of AMX that kernels use, on tile registers in Python: what Intel's manual says of each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

_ROW_BYTES, _ROWS = 64, 16


class TileRegisters:
    """Eight of 16 rows of 64 bytes, of which a configuration uses fewer."""

    def __init__(self) -> None:
        self._configured = False
        self._rows, self._row_bytes = [0] * 8, [0] * 8
        self._tiles = [bytearray(_ROWS * _ROW_BYTES) for _ in range(8)]

    def run(self, code: bytes, address: int, registers: Sequence[int]) -> int:
        """Do the instruction at an address; registers: the 16 general ones, by number. Answers its length, or 0 for one
        that is not of AMX."""
        if code[0] != 0xC4 or code[1] & 0x1F != 2 or code[2] & 0x84:
            return 0
        prefix, opcode, form = code[2] & 3, code[3], code[4]
        tile, other, third = form >> 3 & 7, form & 7, ~code[2] >> 3 & 7
        if form >> 6 == 3:
            if (prefix, opcode, form) == (0, 0x49, 0xC0):
                self._configured = False
            elif (prefix, opcode, other) == (3, 0x49, 0):
                self._start(tile)
            elif (prefix, opcode) == (2, 0x5C):
                self._add_bfloat16_products(tile, other, third)
            else:
                return 0
            return 5
        place, step, length = _operand(code, address, registers)
        if (prefix, opcode, tile) == (0, 0x49, 0):
            self._configure(ctypes.string_at(place, 64))
        elif (prefix, opcode) == (3, 0x4B):
            self._start(tile)
            for row in range(self._rows[tile]):
                content = ctypes.string_at(place + row * step, self._row_bytes[tile])
                self._tiles[tile][row * _ROW_BYTES : row * _ROW_BYTES + len(content)] = content
        elif (prefix, opcode) == (2, 0x4B):
            self._check(tile)
            for row in range(self._rows[tile]):
                content = bytes(self._tiles[tile][row * _ROW_BYTES :][: self._row_bytes[tile]])
                ctypes.memmove(place + row * step, content, len(content))
        else:
            return 0
        return length

    def _configure(self, configuration: bytes) -> None:
        if configuration[0] != 1 or any(configuration[2:16]):
            raise RuntimeError(f"no configuration of tiles: {configuration.hex()}")
        for tile in range(8):
            self._row_bytes[tile] = int.from_bytes(configuration[16 + 2 * tile :][:2], "little")
            self._rows[tile] = configuration[48 + tile]
            if self._rows[tile] > _ROWS or self._row_bytes[tile] > _ROW_BYTES or self._row_bytes[tile] % 4:
                raise RuntimeError(f"no configuration of tiles: {configuration.hex()}")
        if any(configuration[32:48]) or any(configuration[56:]):
            raise RuntimeError(f"no configuration of tiles: {configuration.hex()}")
        self._tiles = [bytearray(_ROWS * _ROW_BYTES) for _ in range(8)]
        self._configured = True

    def _check(self, *tiles: int) -> None:
        if not self._configured or not all(self._rows[tile] and self._row_bytes[tile] for tile in tiles):
            raise RuntimeError(f"tiles {tiles} are used, which are not configured")

    def _start(self, tile: int) -> None:
        self._check(tile)
        self._tiles[tile][:] = bytes(_ROWS * _ROW_BYTES)

    def _add_bfloat16_products(self, to: int, left: int, right: int) -> None:
        """Even and odd inputs are added up by themselves, and then together; subnormal numbers are not made 0 here."""
        self._check(to, left, right)
        inputs, rows, columns = self._row_bytes[left] // 4, self._rows[to], self._row_bytes[to] // 4
        if (self._rows[left], self._rows[right], self._row_bytes[right]) != (rows, inputs, self._row_bytes[to]):
            raise RuntimeError("the shapes of tiles do not fit each other")
        x, weights = self._pairs(left)[:rows, :inputs], self._pairs(right)[:inputs, :columns]
        sums = torch.zeros(rows, columns, 2)
        for k in range(inputs):
            sums = sums + x[:, k, None] * weights[None, k]
        total = torch.frombuffer(self._tiles[to], dtype=torch.float32).view(_ROWS, -1)
        total[:rows, :columns] += sums[..., 0] + sums[..., 1]

    def _pairs(self, tile: int) -> Tensor:
        """`[16, 16, 2]`, as float32."""
        return torch.frombuffer(self._tiles[tile], dtype=torch.bfloat16).view(_ROWS, -1, 2).float()


def _operand(code: bytes, address: int, registers: Sequence[int]) -> tuple[int, int, int]:
    """Of an operand in memory: where it is but for its index register, what that adds for each row, and how many bytes
    the instruction has."""
    form, at = code[4], 5
    mode, base, step = form >> 6, form & 7, 0
    if base == 4:
        scaled = code[at]
        at += 1
        base = scaled & 7
        index = scaled >> 3 & 7 | (~code[1] >> 6 & 1) << 3
        step = ctypes.c_int64(registers[index]).value << (scaled >> 6) if index != 4 else 0
    size = {0: 4 if base == 5 else 0, 1: 1, 2: 4}[mode]
    place = int.from_bytes(code[at : at + size], "little", signed=True)
    at += size
    if mode == 0 and base == 5:
        place += address + at if form & 7 == 5 else 0
    else:
        place += registers[base | (~code[1] >> 5 & 1) << 3]
    return place & 0xFFFFFFFFFFFFFFFF, step, at
