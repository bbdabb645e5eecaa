"""A CPU in this process with instruction sets that the machine's own lacks: that of Bochs, from bochscpu-python.

It sees this process's memory at the process's addresses, so kernels run where they are loaded, on tensors where they
are. It lacks the tile registers of AMX: `tile_registers.py` has these.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.device.tile_registers import TileRegisters

PACKAGE = "bochscpu-python==0.4.0"
"""What to install. Its choice of CPUs has no public interface, so another version may not do."""

_MODEL = 30  # Sapphire Rapids, in the order of Bochs's list
_GIBIBYTE, _PAGE = 1 << 30, 4096
_FIRST_SLOT = 4  # what is below is no plain memory in a PC
_MOST_SLOTS = 1 << 10
_BROUGHT = 64  # pages that are made known together

# Where things are in the machine's own memory.
_PML4, _GDT, _TSS, _IDT, _STUBS, _POINTERS = 0, 0x1000, 0x1080, 0x1100, 0x2000, 0x3000
_TRAP_STACK, _STACK, _SIZE = 0x20000, 0x30000, 0x1030000
_TABLE, _LARGE_PAGE = 0x7, 0x87  # bits of page tables' entries
_CODE, _DATA = 0x10, 0x18
_FLAGS = 2

# Each of these addresses has an instruction that stops the machine: of 32 exceptions, then these.
_STUB_BYTES = 16
_SYSTEM_CALL, _RETURN, _STARTED = 32, 33, 34
_INVALID_OPCODE = 6
_STOP = b"\x0f\x09"  # wbinvd
_START = bytes.fromhex("31c9b8e700000031d20f01d1") + _STOP  # xcr0 = 0xe7: all of AVX-512's registers

_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_ARCH_PRCTL, _ARCH_GET_FS = 158, 0x1003


class EmulatedCpu:
    """Calls C functions of this process, one at a time, and those that they call, system calls included.

    Raises ImportError where the package is missing, RuntimeError where it is another.
    """

    def __init__(self) -> None:
        _complete_libc()
        import bochscpu
        import bochscpu.memory

        _choose_model(bochscpu)
        self._insert = bochscpu.memory.page_insert
        self._slots: dict[int, int] = {}  # where each gibibyte of the process is in the machine's physical memory
        self._places: dict[int, int] = {}  # and back
        self._memory = mmap.mmap(-1, _SIZE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._tables: dict[int, int] = {}  # second page tables: where they are, by their entry in the first
        self._mapped: set[int] = set()  # gibibytes that are in them
        self._heap_end = 0
        self._tiles = TileRegisters()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.argtypes = [ctypes.c_long] * 7
        self._libc.syscall.restype = ctypes.c_long
        self._fill_tables()
        self._session = bochscpu.Session()
        self._session.missing_page_handler = self._bring
        self._hook = bochscpu.Hook()
        self._hook.cache_cntrl = lambda session, cpu, what: session.stop()
        self._map()
        self._session.cpu.state = self._first_state(bochscpu)
        self._session.run([self._hook])
        if self._session.cpu.rip != self._stub(_STARTED) + len(_START):
            raise RuntimeError(f"the emulated CPU has no AVX-512; install {PACKAGE}")

    def call(self, function: int, argument: int) -> int:
        """What `int function(void* argument)` answers. Raises RuntimeError for an exception of the CPU."""
        self._map()
        cpu, top = self._session.cpu, self._base + _SIZE - 64
        self._put(_SIZE - 72, struct.pack("<Q", self._stub(_RETURN)))
        cpu.rsp, cpu.rdi, cpu.rip, cpu.rflags = top - 8, argument, function, _FLAGS
        while True:
            self._session.run([self._hook])
            number, offset = divmod(cpu.rip - self._base - _STUBS, _STUB_BYTES)
            if offset != len(_STOP):
                raise RuntimeError(f"the emulated CPU stopped at {cpu.rip:#x}")
            if number == _RETURN:
                return ctypes.c_int(cpu.rax & 0xFFFFFFFF).value
            if number == _SYSTEM_CALL:
                self._system_call(cpu)
            else:
                self._exception(cpu, number)

    def _exception(self, cpu: Any, number: int) -> None:
        """Do what tile registers do, or say what went wrong."""
        error = number in (8, 10, 11, 12, 13, 14, 17)
        rip, _, flags, rsp, _ = struct.unpack("<5Q", self._memory[_STACK - 40 : _STACK])
        code = ctypes.string_at(rip, 15)
        if number == _INVALID_OPCODE:
            registers = [rsp if name == "rsp" else getattr(cpu, name) for name in _REGISTERS]
            if length := self._tiles.run(code, rip, registers):
                cpu.rip, cpu.rsp, cpu.rflags = rip + length, rsp, flags
                return
        more = f", error {struct.unpack('<Q', self._memory[_STACK - 48 : _STACK - 40])[0]:#x}, at {cpu.cr2:#x}"
        raise RuntimeError(f"exception {number} of the emulated CPU at {rip:#x}, {code.hex()}{more if error else ''}")

    def _system_call(self, cpu: Any) -> None:
        result = self._libc.syscall(cpu.rax, *(ctypes.c_long(getattr(cpu, name)).value for name in _ARGUMENTS))
        cpu.rax = (-ctypes.get_errno() if result == -1 else result) & 0xFFFFFFFFFFFFFFFF
        cpu.rip, cpu.rflags = cpu.rcx, cpu.r11
        self._map()

    def _stub(self, number: int) -> int:
        return self._base + _STUBS + number * _STUB_BYTES

    def _put(self, at: int, content: bytes) -> None:
        self._memory[at : at + len(content)] = content

    def _fill_tables(self) -> None:
        """Descriptors, and what stops the machine."""
        for number in range(_STARTED):
            self._put(_STUBS + number * _STUB_BYTES, _STOP)
        self._put(_STUBS + _STARTED * _STUB_BYTES, _START)
        self._put(_GDT + _CODE, struct.pack("<2Q", 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        self._put(_TSS + 36, struct.pack("<Q", self._base + _STACK))
        for number in range(32):
            low, high = self._stub(number) & 0xFFFF, self._stub(number) >> 16
            gate = struct.pack("<HHBBHII", low, _CODE, 1, 0x8E, high & 0xFFFF, high >> 16, 0)
            self._put(_IDT + number * 16, gate)

    def _first_state(self, bochscpu: Any) -> Any:
        """64-bit mode with all rights, this thread's own storage, and stops at exceptions and system calls."""
        state = bochscpu.State()
        state.cr0, state.cr3, state.cr4 = 0x80010033, self._physical(self._base + _PML4), 0x40620
        state.efer, state.xcr0, state.mxcsr, state.fpcw = 0xD01, 7, 0x1F80, 0x37F
        state.star, state.lstar, state.rflags = _CODE << 32, self._stub(_SYSTEM_CALL), _FLAGS
        thread = ctypes.c_uint64()
        self._libc.syscall(_ARCH_PRCTL, _ARCH_GET_FS, ctypes.addressof(thread), 0, 0, 0, 0)
        for name, selector, attributes, base in (
            ("cs", _CODE, 0xA09B, 0),
            *((name, _DATA, 0xC093, 0) for name in ("ss", "ds", "es", "gs")),
            ("fs", _DATA, 0xC093, thread.value),
            ("tr", 0x20, 0x8B, self._base + _TSS),
        ):
            segment = bochscpu.Segment()
            segment.present, segment.selector, segment.attr, segment.base = True, selector, attributes, base
            segment.limit = 0x67 if name == "tr" else 0xFFFFFFFF
            setattr(state, name, segment)
        for name, base, size in (("gdtr", _GDT, 0x20), ("idtr", _IDT, 32 * 16)):
            table = bochscpu.GlobalSegment()
            table.base, table.limit = self._base + base, size - 1
            setattr(state, name, table)
        state.rip, state.rsp = self._stub(_STARTED), self._base + _SIZE - 64
        return state

    def _physical(self, address: int) -> int:
        place = address // _GIBIBYTE
        if place not in self._slots:
            slot = _FIRST_SLOT + len(self._slots)
            if slot >= _MOST_SLOTS:
                raise RuntimeError("this process has too much memory for the emulated CPU")
            self._slots[place], self._places[slot] = slot, place
        return self._slots[place] * _GIBIBYTE + address % _GIBIBYTE

    def _map(self) -> None:
        """Let the machine see all memory that the process has got by now."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(part, 16) for part in line.split(None, 1)[0].split("-"))
            if last >= 1 << 47:
                continue
            for place in range(first // _GIBIBYTE, (last - 1) // _GIBIBYTE + 1):
                if place not in self._mapped:
                    self._map_place(place)
            if line.endswith("[heap]"):
                # The machine may be within malloc when it asks for a page, and what answers would come to malloc, too.
                for address in range(max(first, self._heap_end), last, _PAGE):
                    self._insert(self._physical(address), address)
                self._heap_end = last

    def _map_place(self, place: int) -> None:
        """Enter a gibibyte into the page tables."""
        upper = place // 512
        if upper not in self._tables:
            table = _POINTERS + len(self._tables) * _PAGE
            if table == _TRAP_STACK:
                raise RuntimeError("this process's memory is too scattered for the emulated CPU")
            self._tables[upper] = table
            self._put(_PML4 + upper * 8, struct.pack("<Q", self._physical(self._base + table) | _TABLE))
        entry = self._physical(place * _GIBIBYTE) | _LARGE_PAGE
        self._put(self._tables[upper] + place % 512 * 8, struct.pack("<Q", entry))
        self._mapped.add(place)

    def _bring(self, physical: int) -> None:
        """Make pages known that the machine asks for."""
        first = physical // (_BROUGHT * _PAGE) * (_BROUGHT * _PAGE)
        address = self._places[first // _GIBIBYTE] * _GIBIBYTE + first % _GIBIBYTE
        for offset in range(0, _BROUGHT * _PAGE, _PAGE):
            self._insert(first + offset, address + offset)


_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


def _complete_libc() -> None:
    """Define what the package takes from libc that only those of 2023 and later have (glibc 2.38)."""
    if hasattr(ctypes.CDLL(None), "__isoc23_sscanf"):
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "libc.c", Path(folder) / "libc.so"
        source.write_text(_NEW_IN_LIBC)
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_NEW_IN_LIBC = """
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

unsigned long long __isoc23_strtoull(const char* text, char** end, int base) { return strtoull(text, end, base); }

int __isoc23_sscanf(const char* text, const char* format, ...) {
    va_list list;
    va_start(list, format);
    int count = vsscanf(text, format, list);
    va_end(list);
    return count;
}
"""


def _choose_model(bochscpu: Any) -> None:
    """Give the emulator's only CPU, which is made later, all the instructions that it can have."""
    library = ctypes.CDLL(bochscpu._bochscpu.__file__)
    try:
        find = library._ZN13bx_real_sim_c14get_param_enumEPKcP10bx_param_c
        widen, choose = library._ZN14bx_param_num_c9set_rangeEmm, library._ZN15bx_param_enum_c3setEl
    except AttributeError:
        raise RuntimeError(f"this version of the emulated CPU has no choice of models; install {PACKAGE}") from None
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    widen.argtypes, choose.argtypes = (
        [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64],
        [ctypes.c_void_p, ctypes.c_int64],
    )
    models = find(None, b"cpu.model", None)
    widen(models, 0, 63)
    choose(models, _MODEL)
