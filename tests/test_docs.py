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
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from memlens.commands.main import COMMANDS, cli
from memlens.pages.classes import PageClass
from memlens.residency.records import PageExplanation, ProcessMap
from memlens.schema import json_schema

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in (ROOT, ROOT / "docs", ROOT / "docs" / "decisions")
    for path in path.glob("*.md")
)
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
    text = sections(ROOT / "docs" / "commands.md", 2)[f"memlens {name}"]
    assert f"<!-- generated: help {name} -->" in text
    assert f"memlens {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("kind", PageClass, ids=lambda kind: kind.label)
def test_every_class_is_documented(kind: PageClass) -> None:
    text = sections(ROOT / "docs" / "concepts.md", 3)[kind.label]
    assert len(text.split()) > 20


def test_decisions_are_numbered_without_gaps() -> None:
    for number, path in enumerate(sorted((ROOT / "docs" / "decisions").glob("*.md")), 1):
        assert path.name.startswith(f"{number:04}-")
        assert path.read_text().startswith(f"# {number}. ")


def test_nothing_is_documented_that_does_not_exist() -> None:
    known = {f"memlens {name}" for name in COMMANDS}
    assert set(sections(ROOT / "docs" / "commands.md", 2)) >= known
    written = {
        title
        for title in sections(ROOT / "docs" / "commands.md", 2)
        if title.startswith("memlens ")
    }
    assert written == known


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


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", path.read_text())
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing


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


@pytest.mark.parametrize(
    "words",
    [
        ["map", str(os.getpid())],
        ["map", str(os.getpid()), "--pages", "--words"],
        ["page", str(os.getpid()), f"{id(ROOT):x}"],
    ],
    ids=str,
)
def test_json_is_of_its_schema(words: list[str]) -> None:
    found = run_json(*words)
    kind = {"map": ProcessMap, "page": PageExplanation}[words[0]]
    jsonschema.validate(found, json_schema(kind))
    assert found["schema"] == kind.SCHEMA
    assert set(found["tables"]) <= set(kind.table_fields())


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


def table_keys(text: str) -> set[str]:
    """Return the names in the first column of a table."""
    cells = re.findall(r"^\| (`[^|]+) \|", text, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("doctor", ["doctor"]),
        ("demo", ["demo", "--no-swap"]),
    ],
)
def test_json_of_other_commands_is_as_documented(name: str, words: list[str]) -> None:
    text = sections(ROOT / "docs" / "json.md", 2)[f"memlens.{name}/1"].partition("\n# ")[0]
    found = run_json(*words)
    assert found["schema"] == f"memlens.{name}/1"
    assert set(found) == table_keys(text)


def test_json_of_interfaces_is_as_documented() -> None:
    (row,) = re.findall(r"^\| `interfaces` .*$", (ROOT / "docs" / "json.md").read_text(), re.M)
    for interface in run_json("doctor")["interfaces"]:
        assert set(interface) <= set(re.findall(r"`(\w+)`", row))


def test_doctor_example_names_real_interfaces() -> None:
    real = [(row["name"], row["title"]) for row in run_json("doctor")["interfaces"]]
    shown = "".join(blocks(ROOT / "docs" / "commands.md", "console"))
    assert re.findall(r"^  (?:ok|missing|off) +(\w+) +(.+)$", shown, flags=re.MULTILINE) == real


def test_demo_example_shows_real_kinds_of_memory() -> None:
    found = run_json("demo", "--no-swap")
    real = {row["how"] for row in (*found["findings"], *found["left_out"])}
    shown = "".join(blocks(ROOT / "docs" / "commands.md", "console"))
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
