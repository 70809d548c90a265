"""The process list: text that fits, JSON as documented, CSV."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from memlens.report import Cost, Missed
from memlens.sharing.records import ProcessGroup, ProcessList, ProcessMemory
from memlens.views import sharing as ps
from memlens.views.lines import Line, cell_len
from memlens.views.table import TableOptions

EVIL = "evil\x1b[31m\nname\udcff"
COST = Cost(0.5, 4096, 0.001)
MISSED = (Missed(f"tmpfs on /{EVIL}", "Permission denied"),)
PROCESSES = ProcessList(
    page_size_bytes=4096,
    processes=(
        ProcessMemory(7, "postgres", 0, "/a", 100, 60.5, 50, 9, 1.5, 40, 2),
        ProcessMemory(42, EVIL, 0, "/b", 90, 45.0, 40, 3, 1.5, None, 1),
    ),
    groups=(
        ProcessGroup("0", (7, 42), 120, 105.5, 90, 11, 3.0),
        ProcessGroup("4294967294", (), None, 0.0, 0, None, 0.0),
    ),
    missed=MISSED,
    notes=(),
    cost=COST,
)


def render_everything(options: TableOptions) -> Iterator[tuple[str, Iterator[Line]]]:
    yield "ps", ps.render_processes(PROCESSES, options)
    yield "groups", ps.render_processes(PROCESSES, options, "user")


def plain(lines: Iterator[Line]) -> list[str]:
    return ["".join(part.text for part in line) for line in lines]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("is_unicode", [False, True])
def test_every_line_fits_and_none_is_raw(width: int, is_unicode: bool) -> None:
    options = TableOptions(width, is_unicode=is_unicode)
    for name, lines in render_everything(options):
        for line in plain(lines):
            assert cell_len(line) <= width, (name, line)
            assert line.isprintable(), (name, line)
            assert is_unicode or line.isascii(), (name, line)


@pytest.mark.parametrize("width", [60, 200])
def test_an_incomplete_answer_says_so_first(width: int) -> None:
    options = TableOptions(width)
    lines = ps.render_processes(replace(PROCESSES, is_complete=False), options)
    assert plain(lines)[0].startswith("INCOMPLETE")


def test_ps_json_is_as_fixed() -> None:
    found = json.loads("".join(ps.render_processes_json(PROCESSES, "user")))
    assert found["schema"] == "memlens.ps/1"
    assert found["processes"][0] == {
        "pid": 7,
        "user": "root",
        "uid": 0,
        "name": "postgres",
        "cgroup": "/a",
        "rss_pages": 100,
        "pss_pages": 60.5,
        "uss_pages": 50,
        "swap_own_pages": 9,
        "swap_share_pages": 1.5,
        "freed_on_exit_pages": 40,
        "shared_memory_pages": 2,
    }
    assert found["processes"][1]["freed_on_exit_pages"] is None
    group = found["groups"][0]
    assert (group["key"], group["pids"], group["distinct_rss_pages"]) == ("root", [7, 42], 120)


def test_csv_has_no_raw_control() -> None:
    text = "".join(ps.render_processes_csv(PROCESSES))
    assert "\x1b" not in text
    text.encode()
