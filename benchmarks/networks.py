"""Hosts on one machine: network namespaces, and a wire between them that can be slow, lose packets, or be cut."""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

_NAMESPACES = Path("/run/netns")
_WIRE = Path(__file__).with_name("wire.c")
_CLONE_NEWNET = 0x40000000
# Jumbo frames, as networks between such hosts have.
_MTU = 9000


class Network:
    """So many hosts: `with Network(2) as network`. Host N has the address 10.0.0.N+1. Raises OSError, with the reason,
    where the machine has no such thing."""

    def __init__(self, hosts: int) -> None:
        name = secrets.token_hex(3)
        self.addresses = [f"10.0.0.{number}" for number in range(1, hosts + 1)]
        self.namespaces = [f"host{number}-{name}" for number in range(hosts)]
        self.devices = [f"wire{number}-{name}" for number in range(hosts)]
        with ExitStack() as stack:
            program = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "wire"
            _run("cc", "-O2", "-o", str(program), str(_WIRE))
            for namespace in self.namespaces:
                _run("ip", "netns", "add", namespace)
                stack.callback(subprocess.run, ["ip", "netns", "del", namespace], check=False)
            wire = [program, *self.devices]
            self._wire = stack.enter_context(
                subprocess.Popen(wire, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(self._wire.kill)
            assert self._wire.stdin and self._wire.stdout
            if self._wire.stdout.readline() != "ready\n":
                raise OSError("there are no TUN devices to be had")
            for device, namespace, address in zip(self.devices, self.namespaces, self.addresses, strict=True):
                _run("ip", "link", "set", device, "netns", namespace)
                _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device)
                _run("ip", "-n", namespace, "link", "set", device, "mtu", str(_MTU), "up")
                _run("ip", "-n", namespace, "link", "set", "lo", "up")
            self._resources = stack.pop_all()

    def be(self, delay: float = 0.0, rate: float = 0.0, loss: float = 0.0) -> None:
        """What the wire is like from now on: seconds that a packet takes, bits a second or 0, the part that is lost."""
        assert self._wire.stdin
        self._wire.stdin.write(f"{delay * 1e6} {rate / 1e6} {loss}\n")
        self._wire.stdin.flush()

    def cut(self) -> None:
        """Nothing comes through any more."""
        self.be(loss=1.0)

    @contextmanager
    def on(self, host: int) -> Iterator[None]:
        """What this thread opens and starts within the block is on a host."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(_NAMESPACES / self.namespaces[host], os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def processes(self, host: int) -> list[int]:
        """Those that run on a host."""
        found = subprocess.run(["ip", "netns", "pids", self.namespaces[host]], capture_output=True, text=True).stdout
        return [pid for pid in map(int, found.split()) if pid != os.getpid()]

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")


def _run(*command: str) -> None:
    """Raises OSError with what the command says."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise OSError(f"{command[0]} does not work here: {done.stderr.strip()}")
