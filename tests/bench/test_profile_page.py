"""`sophserve profile`: the page and the trace that it makes of records."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sophserve.bench.profile_records import read_profile
from sophserve.bench.profile_report import main
from sophserve.cli import main as command_line
from sophserve.errors import ConfigError
from sophserve.profile_format import Command, Header, Step, Sums, next_index

EVIL = "</script><script>alert('1')</script>&\"<img src=x onerror=alert(2)>"


def header(**given: Any) -> Header:
    fields = {
        "model": "/data/tiny",
        "device": "cmodel: portable kernels on 2 threads",
        "device_id": 0,
        "rank": 0,
        "world_size": 1,
        "mode": 1,
        "max_record_num": 1_000_000,
        "started": 1.7e9,
        "start": 10**15,
        "bytes_per_second": 3e10,
        "operations_per_second": 4e11,
    }
    return Header(**{**fields, **given})


def some_steps(count: int = 3, operator: str = "linear 64x32", mode: int = 1) -> list[Step]:
    steps = []
    for number in range(count):
        start = 10**15 + 5000 + number * 100_000
        commands = [
            Command(operator, start + 100, 30_000, 4096 + number, 8192, "rows=2" if mode == 2 else ""),
            Command("rms_norm", start + 30_100, 1_000, 512, 256, "rows=1" if mode == 2 else ""),
            Command(operator, start + 40_000, 20_000, 4096, 8192, "rows=1" if mode == 2 else ""),
        ]
        step = Step(step=number, start=start, duration=80_000, sequences=2, tokens=2 + number, memory=(2**30, 2**33))
        if mode:
            step.commands = commands
        else:
            step.sums = {operator: Sums(2, 50_000, 8192 + number, 16384), "rms_norm": Sums(1, 1_000, 512, 256)}
        steps.append(step)
    return steps


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(header, steps, tail=b"")`: the folder of one rank."""

    def make(head: Header, steps: list[Step], tail: bytes = b"") -> Path:
        folder = tmp_path / f"cdm_profile_data_dev{head.rank}-0"
        folder.mkdir()
        lines = [msgspec.json.encode(line) + b"\n" for line in (head, *steps)]
        (folder / "records.jsonl").write_bytes(b"".join(lines) + tail)
        return folder

    return make


def test_the_trace_has_every_command(write: Callable[..., Path], tmp_path: Path) -> None:
    for rank in (0, 1):
        write(header(rank=rank, world_size=2), some_steps())
    assert main([str(tmp_path), str(tmp_path / "new" / "out")]) == 0
    events = json.loads((tmp_path / "new" / "out" / "trace.json").read_text())["traceEvents"]
    for rank in (0, 1):
        commands = [event for event in events if event["pid"] == rank and event["ph"] == "X" and event["tid"] == 1]
        assert [(event["name"], event["ts"], event["dur"], event["args"]) for event in commands] == [
            (
                c.operator,
                c.start / 1000,
                c.duration / 1000,
                {"bytes": c.bytes, "operations": c.operations, "step": s.step},
            )
            for s in some_steps()
            for c in s.commands or []
        ]
        assert sum(event["pid"] == rank and event["ph"] == "X" and event["tid"] == 0 for event in events) == 3
    assert {event["ph"] for event in events} == {"M", "X", "C"}


def test_mode_2_goes_into_the_trace(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(header(mode=2), some_steps(mode=2))
    main([str(folder)])
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert [event["args"]["detail"] for event in events if event.get("tid") == 1 and event["ph"] == "X"][:2] == [
        "rows=2",
        "rows=1",
    ]
    out = capsys.readouterr().out
    assert "3 steps, 0.2 ms" in out and re.search(r"linear 64x32 +6 calls +0\.15 ms +62\.5 %", out)


def test_whatever_is_in_records_stays_text(write: Callable[..., Path]) -> None:
    folder = write(header(model=EVIL, device=EVIL, mode=2), some_steps(operator=EVIL, mode=2))
    main([str(folder)])
    text = (folder / "profile.html").read_text()
    assert "alert(2)" in text and EVIL not in text and "<img src=x" not in text
    assert text.count("<script") == 2 and text.count("</script") == 2
    assert html.escape(EVIL) in text.partition("</title>")[0]
    # Nothing is fetched: the policy forbids it, and nothing asks for it.
    assert "default-src 'none'" in text and not re.search(r"""(src|href)\s*=\s*["']?https?:""", text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is empty: nothing was recorded"),
        (b"", "has not one whole line"),
        (b'{"sophserve_profile": 1, "mod', "has not one whole line"),
        (b"hello\n", "does not begin as records of sophserve do"),
        (b'{"sophserve_profile": 1}\n', "does not begin as records of sophserve do.*model"),
        (msgspec.json.encode(header(sophserve_profile=9)) + b"\n", "has format 9, this sophserve reads 1"),
        (msgspec.json.encode(header()) + b"\n", "has no steps"),
        (msgspec.json.encode(header()) + b"\n{}\n", "line 2 is damaged.*step"),
        (msgspec.json.encode(header()) + b"\n\xff\n", "line 2 is damaged"),
    ],
)
def test_records_that_cannot_be_drawn(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = tmp_path / "cdm_profile_data_dev0-0"
    folder.mkdir()
    if content is not None:
        (folder / "records.jsonl").write_bytes(content)
    for place in (folder, tmp_path):
        with pytest.raises(ConfigError, match=message):
            main([str(place)])


def test_negative_times_are_damage(write: Callable[..., Path]) -> None:
    steps = some_steps()
    assert steps[1].commands
    steps[1].commands[0].duration = -1
    with pytest.raises(ConfigError, match=r"line 3 is damaged.*>= 0.*commands"):
        main([str(write(header(), steps))])


def test_a_torn_last_line_is_left_out(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    steps = some_steps()
    folder = write(header(), steps[:2], msgspec.json.encode(steps[2])[:-9])
    assert main([str(folder)]) == 0
    (profile,) = read_profile(folder)
    assert profile.torn and profile.steps == steps[:2]
    assert "left out" in capsys.readouterr().out


def test_places_without_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chip = tmp_path / "cdm_profile_data_dev0-3"
    chip.mkdir()
    (chip / "iter0.profile").write_bytes(b"\0")
    (tmp_path / "nothing").mkdir()
    for place, message in (
        (tmp_path / "gone", "is no directory"),
        (tmp_path / "nothing", "holds no folder cdm_profile_data_dev*"),
        (chip, f"bigTpuProfile {chip} OUT"),
    ):
        assert command_line(["profile", str(place)]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line(["profile"])
    assert "DIR" in capsys.readouterr().err


def test_out_that_cannot_be_written(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(header(), some_steps())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="give another OUT"):
        main([str(folder), str(tmp_path / "file")])


def test_folders_are_numbered_on(tmp_path: Path) -> None:
    assert next_index(tmp_path) == 0
    for name in ("cdm_profile_data_dev0-0", "cdm_profile_data_dev3-11", "cdm_profile_data_dev0-x", "else-99"):
        (tmp_path / name).mkdir()
    assert next_index(tmp_path) == 12


# --- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Sends what a user would do, and shows what the script keeps for itself.
ACTIONS = """<script>
window.addEventListener("load", () => {
  const canvas = document.getElementById("timeline"), top = canvas.getBoundingClientRect().top;
  for (const y of [10, 35, 50, 70, 110])
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: 90, clientY: top + y }));
  if (ZOOM) {
    canvas.dispatchEvent(new WheelEvent("wheel", { clientX: 90, deltaY: -300 }));
    canvas.dispatchEvent(new MouseEvent("dblclick", { clientX: 90, clientY: top + 50 }));
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    show(begin, begin + 90000);
    showTable();
  }
  document.getElementById("roofline").dispatchEvent(new PointerEvent("pointermove"));
  const painted = (id) => {
    const canvas = document.getElementById(id), context = canvas.getContext("2d");
    return context.getImageData(0, 0, canvas.width, canvas.height).data.filter((value) => value).length;
  };
  document.body.dataset.painted = [painted("timeline"), painted("roofline")].join();
});
</script>"""


def open_page(path: Path, profile: Path, zoom: bool = False) -> tuple[str, list[str]]:
    """The page's elements after its script has run, and what it wrote to the console."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    acted = path.with_name("acted.html")
    acted.write_text(path.read_text().replace("</body>", ACTIONS.replace("ZOOM", str(zoom).lower()) + "</body>"))
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    switches += f"disable-component-update disable-sync dump-dom enable-logging=stderr user-data-dir={profile}"
    command = [CHROMIUM, *(f"--{switch}" for switch in switches.split()), acted.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def table(page: str) -> dict[str, tuple[int, int, int, int]]:
    """What the rows of the page's table say."""
    found = {}
    for line in re.findall(r"<tr data-[^>]*>", page):
        data = {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', line)}
        found[data["operator"]] = tuple(int(data[name]) for name in ("count", "duration", "bytes", "operations"))
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_page_adds_up(write: Callable[..., Path], tmp_path: Path, mode: int) -> None:
    folder = write(header(mode=mode, model=EVIL), some_steps(operator=EVIL, mode=mode))
    main([str(folder)])
    page, console = open_page(folder / "profile.html", tmp_path / "browser")
    assert console == []
    (profile,) = read_profile(folder)
    assert table(page) == {name: msgspec.structs.astuple(sums) for name, sums in profile.sums().items()}
    assert [int(count) > 1000 for count in re.findall(r'data-painted="(\d+),(\d+)"', page)[0]] == [True, True]
    assert "3 steps, 9 tokens" in page


def test_the_page_of_a_part_and_of_two_ranks(write: Callable[..., Path], tmp_path: Path) -> None:
    short = some_steps()
    short[2].commands = None
    write(header(max_record_num=6), short, b'{"step"')
    write(header(rank=1, device_id=4, bytes_per_second=None, operations_per_second=None), some_steps(1))
    main([str(tmp_path)])
    page, console = open_page(tmp_path / "profile.html", tmp_path / "browser", zoom=True)
    assert console == []
    assert table(page) == {"linear 64x32": (2, 50_000, 8192, 16384), "rms_norm": (1, 1000, 512, 256)}
    assert "from step 2 on no commands were recorded: 6 are all" in page and "left out" in page
    assert "rank 1, device 4" in page
