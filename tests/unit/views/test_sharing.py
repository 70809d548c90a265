"""Text and JSON of sharing: widths, sums, names from outside."""

import json
from dataclasses import replace

import pytest

from memlens.report import Cost, Missed
from memlens.sharing.records import MappingShare, PairShare, ProcessShare, Sharing
from memlens.views import sharing

COST = Cost(0.1, 4096, 0.001)
EVIL = "/tmp-like/\x1b[2J" + "long " * 40 + "end"
WIDTHS = (40, 80, 120, 200)


def process(pid: int, parent: int | None, copied: int | None) -> ProcessShare:
    objects = None if copied is None else 8
    since_fork = copied, copied, copied, objects
    mapping = MappingShare(4096, 8192, "rw-p", EVIL, 60, 30.5, 10, *since_fork)
    name = f"n\x07{pid}"
    return ProcessShare(pid, name, parent, 60, 30.5, 10, 9, 0, 0, *since_fork, (mapping,))


def sharing_of(count: int) -> Sharing:
    processes = [process(1000, None, None)]
    processes += [process(1000 + n, 1000, 20 + n) for n in range(1, count)]
    pids = [item.pid for item in processes]
    pairs = [PairShare(a, b, 40) for n, a in enumerate(pids) for b in pids[n + 1 :]]
    return Sharing(
        4096,
        tuple(processes),
        tuple(pairs),
        99,
        False,
        True,
        (Missed("x", "y"),),
        ("note",),
        COST,
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_sharing_fits(width: int, count: int) -> None:
    text = "".join(sharing.render_text(sharing_of(count), width=width))
    assert "\x1b" not in text
    assert "\x07" not in text
    lines = text.splitlines()
    head = next(n for n, line in enumerate(lines) if line.lstrip().startswith("PID"))
    assert len(lines[head + 1 : head + 1 + count]) == count
    if width >= 80:
        assert max(map(len, lines)) <= width
    if count == 40:
        assert "more columns" in text
    assert "note: note" in text


def test_new_memory_is_told_from_what_is_mapped_since() -> None:
    lines = "".join(sharing.render_text(sharing_of(2))).splitlines()
    assert lines[1].endswith(": 84K still shared, 84K copied, 52K new")
    child = next(line for line in lines if line.lstrip().startswith("1001"))
    assert child.split()[5:9] == ["84K", "84K", "52K", "32K"]


def test_a_title_is_cut_to_what_tells_processes_apart() -> None:
    result = sharing_of(2)
    first, second = result.processes
    titled = replace(second, name="server: the worker")
    text = "".join(sharing.render_text(replace(result, processes=(first, titled)), width=80))
    assert "  the worker" in text
    assert "server: the worker" not in text
    text = "".join(sharing.render_text(replace(result, processes=(first, titled)), width=99))
    assert "  server: the worker" in text


def test_sharing_json() -> None:
    found = json.loads(sharing.render_json(sharing_of(3)))
    assert found["pairs"][0] == {"a": 1000, "b": 1001, "shared_pages": 40}
    assert found["processes"][1]["copied_pages"] == 21
    assert found["processes"][1]["new_object_pages"] == 8
