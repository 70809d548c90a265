"""The documentation says what the program does: names, examples, output and JSON."""

import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator, ValidationError, validate

from memlens.commands.main import COMMANDS, cli
from memlens.pages.classes import PageClass
from memlens.record import columns_of
from memlens.report import REPORTS, Report
from memlens.schema import json_schema

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
for records in (ROOT / "src" / "memlens").glob("*/records.py"):
    import_module(f"memlens.{records.parent.name}.records")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    found = FENCE.finditer(path.read_text())
    return [match["text"] for match in found if match["language"] == language]


def sections(path: Path, level: int) -> dict[str, str]:
    """Return the text under each heading of one level."""
    parts = re.split(rf"^{'#' * level} (.+)$", path.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    text = (ROOT / "docs" / "commands" / f"{name}.md").read_text()
    assert text.startswith(f"# memlens {name}\n\n<!-- generated: help {name} -->\n")
    assert f"memlens {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("kind", PageClass, ids=lambda kind: kind.label)
def test_every_class_is_documented(kind: PageClass) -> None:
    text = sections(ROOT / "docs" / "reference" / "classes.md", 2)[kind.label]
    assert len(text.split()) > 20


def test_decisions_are_numbered_without_gaps() -> None:
    for number, path in enumerate(sorted((ROOT / "docs" / "decisions").glob("0*.md")), 1):
        assert path.name.startswith(f"{number:04}-")
        assert path.read_text().startswith(f"# {number}. ")


def test_nothing_is_documented_that_does_not_exist() -> None:
    written = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert written == {"index", *COMMANDS}


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_python_examples_run(path: Path) -> None:
    names: dict[str, Any] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for number, block in enumerate(blocks(path, "python")):
        example = doctest.DocTestParser().get_doctest(
            block, names, f"{short(path)}:{number}", None, 0
        )
        report = io.StringIO()
        runner.run(example, out=report.write, clear_globs=False)
        names = example.globs
        assert not report.getvalue(), report.getvalue()


def anchors(path: Path) -> set[str]:
    """Return what headings of a page are called in links, on GitHub and by mkdocs alike."""
    text = FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles
    }


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", FENCE.sub("", path.read_text())
    ):
        page = path.parent / target if target else path
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"
        # The site holds no more than docs/.
        is_outside = (ROOT / "docs") not in page.resolve().parents
        assert path.parent == ROOT or not is_outside, target


def test_every_page_is_in_the_site() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    there = [
        path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.parent != ROOT
    ]
    assert sorted(listed) == sorted(there)


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    for path in PAGES:
        for block in blocks(path, "console"):
            for line in block.splitlines():
                if line.startswith(("$ memlens ", "# memlens ")):
                    yield f"{short(path)}: {line}", shlex.split(line[2:], comments=True)


@pytest.mark.parametrize(
    ("where", "words"), list(shown_commands()), ids=lambda item: str(item)[:40]
)
def test_shown_commands_are_understood(where: str, words: list[str]) -> None:
    command: click.Command | None = cli
    rest = words[1:]
    if rest and not rest[0].startswith("-"):
        command = cli.get_command(click.Context(cli), rest.pop(0))
    assert command is not None, "no such command"
    known = {option for item in command.params for option in item.opts} | {"--help"}
    unknown = {word for word in rest if word.startswith("--")} - known
    assert not unknown


@cache
def _json_of(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "memlens", *words, "--json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def run_json(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_json_of(*words))
    return found


def test_json_adds_up() -> None:
    found = run_json("map", str(os.getpid()), "--pages")
    labels = [kind.label for kind in PageClass]
    runs: dict[int, list[tuple[int, int, str]]] = {}
    for start, first, pages, name in found["tables"]["runs"]["rows"]:
        runs.setdefault(start, []).append((first, pages, name))
    total = dict.fromkeys(labels, 0)
    for mapping in found["tables"]["mappings"]:
        counts = dict.fromkeys(labels, 0)
        position = 0
        for first, length, name in runs[mapping["start_page"]]:
            assert first == position
            position += length
            counts[name] += length
        assert position == mapping["stop_page"] - mapping["start_page"]
        for name, count in counts.items():
            assert mapping[f"{name}_pages"] == count
            total[name] += count
    unknown = found["tables"]["unknown"]["rows"]
    assert sum(pages for _, _, pages, _ in unknown) == total["unknown"]
    sums = found["sums"]["pages"]
    assert {name: sums[f"{name}_pages"] for name in labels} == total
    assert sums["total_pages"] == sum(total.values())


def test_json_without_pages_has_no_runs() -> None:
    assert "runs" not in run_json("map", str(os.getpid()))["tables"]


# What to ask of each command here: of this process alone, with no scan of the machine.
ASKED = {
    "map": ["map", str(os.getpid())],
    # Private memory: nobody else is asked whether he maps it too.
    "page": ["page", str(os.getpid()), f"{id(ROOT):x}"],
    "doctor": ["doctor"],
    "demo": ["demo", "--no-swap"],
}
KINDS = [kind for _, kind in sorted(REPORTS.items()) if kind.__module__.startswith("memlens.")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.SCHEMA)
def test_schemas_are_those_of_the_records(kind: type[Report]) -> None:
    name = kind.SCHEMA.removeprefix("memlens.").removesuffix("/2")
    schema = json.loads((ROOT / "docs" / "reference" / "schemas" / f"{name}.json").read_text())
    assert schema == json_schema(kind)
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.SCHEMA)
def test_every_column_is_documented(kind: type[Report]) -> None:
    name = kind.SCHEMA.removeprefix("memlens.").removesuffix("/2")
    found = sections(ROOT / "docs" / "reference" / "columns.md", 3)
    for title, field in kind.table_fields().items():
        text = found[f"{name}: {title}"]
        # Each with what it means.
        rows = re.findall(r"^\| `(\w+)` .*\| [^|\s][^|]* \|$", text, flags=re.MULTILINE)
        assert rows == [column.name for column in columns_of(field.record)]
    assert {f"{name}: {title}" for title in kind.section_fields()} <= set(found)


@pytest.mark.parametrize(
    "name", [n for n in ASKED if f"memlens.{n}/2" in {kind.SCHEMA for kind in KINDS}]
)
def test_json_is_as_its_schema_says(name: str) -> None:
    found = run_json(*ASKED[name])
    schema = ROOT / "docs" / "reference" / "schemas" / f"{name}.json"
    validate(found, json.loads(schema.read_text()))


def test_a_wrong_report_is_not_as_its_schema_says() -> None:
    schema = json_schema(REPORTS["memlens.doctor/2"])
    found = run_json("doctor")
    found["tables"]["interfaces"][0]["is_available"] = 1
    with pytest.raises(ValidationError):
        validate(found, schema)


def test_doctor_example_names_real_interfaces() -> None:
    real = [(row["name"], row["title"]) for row in run_json("doctor")["tables"]["interfaces"]]
    shown = "".join(blocks(ROOT / "docs" / "commands" / "doctor.md", "console"))
    assert re.findall(r"^  (?:ok|missing|off) +(\w+) +(.+)$", shown, flags=re.MULTILINE) == real


def test_demo_example_shows_real_kinds_of_memory() -> None:
    found = run_json("demo", "--no-swap")["tables"]
    real = {row["how"] for row in (*found["specimens"], *found["left_out"])}
    shown = "".join(blocks(ROOT / "docs" / "commands" / "demo.md", "console"))
    rows = re.findall(r"^  (\S.*?) +\d+  \w+ +(?:≠ +)?\w+ +✓$", shown, flags=re.MULTILINE)
    assert len(rows) > 20
    assert set(rows) <= real


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        # Also of a tree that is another user's.
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()
    ]


# Paths of one person's machine, and fixed names in directories that all users share.
PRIVATE = re.compile(r"/(?:work|farm|root|home)/\w|/tmp/[a-z]|/var/tmp/[a-z]|[.]pyenv")


def test_no_file_names_a_place_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{short(path)}: {match[0]}" for match in PRIVATE.finditer(text)]
    assert not found


def test_generated_parts_are_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=True)
