"""What `memlens doctor` prints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from memlens.commands.doctor import command
from memlens.errors import Unsupported
from memlens.record import Table
from memlens.report import Cost, Origin, Report
from memlens.selftest.doctor import PROBE_TABLE, derive_outlooks
from memlens.selftest.records import Area, Capability, Features, Probe, Reader, Zram, Zswap
from memlens.views.doctor import render
from memlens.views.text import TableOptions

ESCAPE = "\x1b"


def probe(name: str, **changes: Any) -> Probe:
    row = next(row for row in PROBE_TABLE if row.name == name)
    return replace(Probe(name, True, "seen", "", "", row.group, row.title), **changes)


def features() -> Features:
    probes = {row.name: probe(row.name) for row in PROBE_TABLE}
    probes["pfns"] = probe(
        "pfns", is_available=False, proof="", reason="hidden", needs="CAP_SYS_ADMIN"
    )
    probes["mincore"] = probe(
        "mincore", is_available=False, proof="", reason="off now", is_switched_off=True
    )
    outlooks, gaps = derive_outlooks(probes)
    area = Area(f"/a{ESCAPE}[2J b", "zram", 256, 128, 5, "zram0", 0, 22)
    return Features.at(
        Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0"),
        tables={
            "interfaces": Table.of(Probe, probes.values()),
            "outlooks": outlooks,
            "gaps": gaps,
            "capabilities": Table.of(Capability, map(Capability, ("CAP_CHOWN", "CAP_PERFMON"))),
            "areas": Table.of(Area, [area]),
            "zram": Table.of(Zram, [Zram("zram0", 1 << 20, 2 << 10, 8 << 10, 0, 0, 0, 0)]),
        },
        sections={
            "reader": Reader(7, False, True, False),
            "zswap": Zswap(True, "zstd", 1 << 20, 3 << 20),
        },
        notes=("a note",),
        cost=Cost(0.1, 4096, 0.001),
    )


def text(width: int, **more: int) -> str:
    lines = render(features(), TableOptions(width, **more))
    return "\n".join("".join(part.text for part in line) for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_fits(width: int) -> None:
    lines = text(width).split("\n")
    # Headings of interfaces are not wrapped; all of them fit a terminal.
    assert max(map(len, lines)) <= max(width, 80)


def test_marks_are_words() -> None:
    lines = text(80).split("\n")
    rows = [row.split() for row in lines if row.startswith("  ") and row[2] != " "]
    marks = {row[1]: row[0] for row in rows}
    assert marks["pagemap"] == "ok"
    assert marks["pfns"] == "missing"
    assert marks["mincore"] == "off"


def test_every_interface_is_shown_with_proof_or_reason() -> None:
    shown = text(200)
    assert all(f" {row.name} " in shown and row.title in shown for row in PROBE_TABLE)
    assert "hidden; needs CAP_SYS_ADMIN" in shown


def test_the_rest_is_shown() -> None:
    shown = text(200)
    assert "user 7, CAP_PERFMON" in shown
    assert "CAP_CHOWN" not in shown
    assert "note      a note" in shown
    assert "zram, 512K of 1M used, priority 5" in shown
    assert "zram0 holds 1M in 8K of RAM" in shown
    assert "zswap is on (zstd), and holds 3M of swapped pages in 1M of RAM" in shown
    assert "processes of this user: part" in shown
    assert "page frames of the machine: nothing" in shown


def test_names_cannot_move_the_cursor() -> None:
    assert ESCAPE not in text(80)
    assert r"\x1b[2J b" in text(200)


def test_json() -> None:
    document = json.loads("".join(features().to_json()))
    assert document["schema"] == "memlens.doctor/2"
    assert (document["kernel"], document["page_size_bytes"]) == ("6.18.0", 4096)
    tables = document["tables"]
    assert [row["name"] for row in tables["capabilities"]] == ["CAP_CHOWN", "CAP_PERFMON"]
    interfaces = {row["name"]: row for row in tables["interfaces"]}
    assert list(interfaces) == [row.name for row in PROBE_TABLE]
    assert interfaces["pfns"]["needs"] == "CAP_SYS_ADMIN"
    assert interfaces["mincore"]["is_switched_off"] is True
    assert tables["areas"][0] == {
        "path": f"/a{ESCAPE}[2J b",
        "kind": "zram",
        "size_pages": 256,
        "used_pages": 128,
        "priority": 5,
        "device": "zram0",
        "first_number": 0,
        "last_number": 22,
    }
    assert tables["outlooks"][0]["scope"] == tables["gaps"][0]["scope"] == "own"
    assert Report.from_json(document) == features()


def test_rows_can_be_cut() -> None:
    assert " pagemap_scan " not in text(80, top=1)
    assert " pagemap " in text(80, top=1)
    assert "Page frames" not in text(80, top=1)


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(command, arguments, env=environment or None)


def test_command_prints_text_without_colour() -> None:
    result = run("--no-color", COLUMNS="80")
    assert result.exit_code == 0
    assert "  ok      pagemap " in result.stdout
    assert ESCAPE not in result.stdout


def test_command_prints_json() -> None:
    result = run("--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema"] == "memlens.doctor/2"


def test_strict_tells_by_exit_code() -> None:
    assert run("--json", MEMLENS_DISABLE="mincore").exit_code == 0
    result = run("--json", "--strict", MEMLENS_DISABLE="mincore")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["tables"]["interfaces"]


def test_a_budget_says_what_was_not_asked() -> None:
    result = run("--json", "--budget", "0.000001")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert not found["is_complete"]
    # Of what was not asked nothing is concluded either.
    assert found["tables"]["outlooks"] == found["tables"]["interfaces"] == []
    assert [row["what"] for row in found["missed"]] == [row.name for row in PROBE_TABLE]
    assert run("--strict", "--budget", "0.000001").exit_code == 3


def test_what_json_wrote_is_shown_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("".join(features().to_json()))
    result = run("--from", str(file), COLUMNS="100")
    assert result.exit_code == 0
    assert result.stdout == text(100) + "\n"
    assert "Usage" not in run("--from", str(file), "--sort", "name", "--csv").stdout
    assert run("--from", str(file), "--sort", "nothing").exit_code == 2


def test_not_a_proc(tmp_path: Path) -> None:
    result = run("--proc", str(tmp_path))
    assert isinstance(result.exception, Unsupported)
    assert result.exception.path == str(tmp_path)


@pytest.mark.parametrize("name", [row.name for row in PROBE_TABLE])
def test_permissions_are_documented(name: str) -> None:
    """docs/how-it-works/permissions.md tells what each interface needs."""
    page = Path(__file__).parents[3] / "docs" / "how-it-works" / "permissions.md"
    table = page.read_text().split("## What each interface needs")[1].split("\n## ")[0]
    assert any(f"`{name}`" in line.split("|")[1] for line in table.split("\n") if "|" in line)
