"""The pages say what is true: links lead somewhere, both READMEs agree, quoted errors exist."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sophserve.errors import TROUBLESHOOTING, ConfigError

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
PAGES = [
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(
        str(path.relative_to(ROOT))
        for name in ("docs", "deploy", "benchmarks", "findings")
        for path in (ROOT / name).rglob("*.md")
    ),
]


@dataclass(frozen=True)
class Fence:
    """A block of code: what stands behind the backticks, and the code."""

    info: str
    code: str


def fences(page: str) -> list[Fence]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    return [Fence(info, code) for info, code in found]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def headings(page: str) -> list[tuple[int, str]]:
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.*)$", prose(page), re.M)]


def anchors(page: str) -> set[str]:
    """Those that the page sets, and those that GitHub makes of headings."""
    made = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text in headings(page)}
    return made | set(re.findall(r'<a id="([\w-]+)"></a>', prose(page)))


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(str(path.relative_to(ROOT))), f"{page} links to {target}"


def test_every_page_can_be_found() -> None:
    linked, others = (
        {target.replace(".zh-CN", "") for target in re.findall(r"\]\((docs/[\w.-]+\.md)", prose(page))}
        for page in READMES
    )
    assert linked == others and "docs/README.md" in linked
    listed = {f"docs/{target}" for target in re.findall(r"\]\(([\w.-]+\.md)", prose("docs/README.md"))}
    assert {page for page in PAGES if page.startswith("docs/")} == listed | {"docs/README.md"}
    assert linked <= listed | {"docs/README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    text = prose(page)
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|js|cpp|h|html))`", text))
    known = {
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.suffix in (".py", ".js", ".cpp", ".h", ".html")
    }
    assert [name for name in sorted(named) if not any(f"/{path}".endswith(f"/{name}") for path in known)] == []


@pytest.mark.parametrize("page", READMES)
def test_ci_finds_the_command_that_tests(page: str) -> None:
    [line] = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if "&& pytest" in line]
    assert line in [line for fence in fences(page) for line in fence.code.splitlines()]


def neutral(fence: Fence) -> Fence:
    """Without comments and texts, which are in the page's language."""
    code = re.sub(r'"[^"\n]*[^\x00-\x7f"\n][^"\n]*"|"[A-Z][^"\n]*"', '""', fence.code)
    return Fence(fence.info, re.sub(r"\s*#.*", "", code))


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".zh-CN.md")])
def test_both_languages_agree(page: str) -> None:
    ours, theirs = page.replace(".zh-CN", ""), page
    assert [level for level, _ in headings(ours)] == [level for level, _ in headings(theirs)]
    assert [neutral(fence) for fence in fences(ours)] == [neutral(fence) for fence in fences(theirs)]
    pictures = [re.findall(r"!\[.*\]\((.*)\)", prose(page)) for page in READMES]
    assert pictures[0] == pictures[1] != []


def model_rows(page: str) -> list[list[str]]:
    rows = re.findall(r"^\| (.*) \|$", (ROOT / page).read_text(encoding="utf-8"), re.M)
    found = [[cell.strip() for cell in row.split("|")] for row in rows]
    return [cells for cells in found if re.match(r"Llama|Qw|LLaVA|DeepSeek", cells[0]) and len(cells) in (6, 10)]


@pytest.mark.parametrize("page", READMES)
def test_the_readmes_have_the_models_of_their_page(page: str) -> None:
    """What they take and on how many devices; a model that cannot be served yet has neither, but what it lacks."""
    listed, ours = model_rows("docs/models.md"), model_rows(page)
    assert [cells[0] for cells in ours] == [cells[0] for cells in listed] != []
    for cells, whole in zip(ours, listed, strict=True):
        assert [cell.strip("–") for cell in cells[2:5]] == [whole[4], *whole[7:9]]
        assert re.findall("`.*`", cells[5]) == re.findall("`.*`", whole[9])


def test_quoted_errors_exist() -> None:
    sources = " ".join(path.read_text() for path in sorted((ROOT / "sophserve").rglob("*.py")))
    sources += " ".join(path.read_text() for path in sorted((ROOT / "device").rglob("*.py")))
    # As one text, whatever lines and values it is made of.
    joined = re.sub(r"\{[^{}]*\}", "", re.sub(r'"\s*\n\s*f?"', "", sources))
    quoted = [text for _, text in headings("docs/troubleshooting.md") if text.startswith("`")]
    assert len(quoted) > 10
    for text in quoted:
        for part in text.strip("`").split("..."):
            if len(part.strip(" ,;")) > 7:
                assert part.strip(" ,;") in joined, text


def places_in_errors() -> Iterator[str]:
    """What is given to see(), or as help of an error that is raised."""
    for path in sorted((ROOT / "sophserve").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            given: list[ast.expr] = []
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                given = [keyword.value for keyword in node.exc.keywords if keyword.arg == "help"]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "see":
                given = node.args
            yield from (each.value for each in given if isinstance(each, ast.Constant))


def test_errors_point_to_places_that_exist() -> None:
    assert (ROOT / TROUBLESHOOTING).is_file()
    text = (ROOT / TROUBLESHOOTING).read_text(encoding="utf-8")
    places = re.findall(r'^<a id="([\w-]+)"></a>\n\n### `', text, re.M)
    assert sorted(places) == sorted(set(places_in_errors()))
    # What keeps a server from starting, or ends it. The other sections are about answers and warnings.
    for section in ("The model", "Memory", "Starting"):
        [part] = re.findall(rf"^## {section}\n(.*?)(?=^## )", text, re.M | re.S)
        assert part.count("\n### `") == part.count("<a id="), f"{section}: an error without a place"


def test_an_error_points_to_its_place() -> None:
    error = ConfigError("port 80 is in use", help="port")
    assert str(error) == f"port 80 is in use (see {TROUBLESHOOTING}#port)" == str(copy.copy(error))
    assert str(ConfigError("as it was")) == "as it was"
