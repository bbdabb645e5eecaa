"""The small commands: plugins, quantize and cache. Imports stay light until one needs more."""

from __future__ import annotations

from collections.abc import Sequence

from sophserve.errors import ConfigError
from sophserve.options import CommandParser


def list_plugins(argv: Sequence[str]) -> int:
    """Print what is registered, and from which distribution."""
    parser = CommandParser("plugins", "List what plugins have registered.")
    parser.parse_args(argv)
    from sophserve import plugins

    kinds = {
        "commands": {
            name: plugins.Registered(name, entry, plugins.distribution(entry))
            for name, entry in sorted(plugins.commands().items())
        },
        "architectures": plugins.architectures(),
        "devices": plugins.devices(),
        "quantizations": plugins.quantizations(),
        "tool parsers": plugins.tool_parsers(),
        "reasoning parsers": plugins.reasoning_parsers(),
    }
    width = max((len(name) for found in kinds.values() for name in found), default=0)
    for kind, found in kinds.items():
        print(f"{kind}:" if found else f"{kind}: none")
        for entry in found.values():
            print(f"  {entry.name:<{width}}  from {entry.distribution}")
    return 0


def quantize(argv: Sequence[str]) -> int:
    parser = CommandParser("quantize", "Write a plain checkpoint quantized, in the method's standard format.")
    parser.add_argument("model", metavar="MODEL", help="a directory with a checkpoint, a Hub id, or demo")
    parser.add_argument("target", metavar="OUT", help="the directory to write, which must be empty or not exist")
    parser.add_argument(
        "--method",
        choices=("gptq", "compressed-tensors", "fp8"),
        default="gptq",
        help="gptq or compressed-tensors: 4 bits in groups of 128; fp8: float8 in blocks of 128 x 128 (default: gptq)",
    )
    parser.add_argument(
        "--head-bits",
        type=int,
        choices=(16, 8),
        default=16,
        help="8 rounds the head, and the embedding where it is tied; by compressed-tensors only (default: 16)",
    )
    given = parser.parse_args(argv)
    import signal
    from pathlib import Path

    from tqdm import tqdm

    from sophserve import plugins
    from sophserve.checkpoint import resolve_model

    source, target = resolve_model(given.model), Path(given.target)
    known = plugins.quantizations()
    if given.method not in known:
        raise ConfigError(f"no installed plugin provides {given.method}")
    with tqdm(desc=f"quantizing to {given.method}", unit="B", unit_scale=True) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        received: list[int] = []

        def interrupt(number: int, _: object) -> None:
            received.append(number)
            raise KeyboardInterrupt

        # As an exception, so that nothing is left of what is half written.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        try:
            known[given.method].value.convert(source, target, on_progress, head_bits=given.head_bits)
        except BaseException:
            if not received:  # else it may be any, where a library had the exception pass through its own code
                raise
            return 128 + received[0]
    sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (source, target)]
    print(f"{target}: {sizes[1] / 2**20:.0f} MiB of weights, {100 * sizes[1] / sizes[0]:.0f}% of {source}'s")
    return 0


def cache(argv: Sequence[str]) -> int:
    parser = CommandParser("cache", "List or clear the packed weights that are kept of quantized checkpoints.")
    parser.add_argument("action", choices=("list", "clear"))
    parser.add_argument("--model", required=True, metavar="MODEL", help="the checkpoint's directory, or a Hub id")
    parser.add_argument("--reorder-cache-dir", default=None, metavar="DIR", help="as given to the server")
    given = parser.parse_args(argv)
    from sophserve import reorder_cache
    from sophserve.checkpoint import resolve_model

    directory = reorder_cache.cache_directory(resolve_model(given.model), given.reorder_cache_dir)
    found = reorder_cache.entries(directory)
    for path in found:
        size = path.stat().st_size
        if given.action == "clear":
            path.unlink()
        print(f"{size / 2**20:10.1f} MiB  {path}{' removed' if given.action == 'clear' else ''}")
    if not found:
        print(f"{directory} holds nothing")
    return 0
