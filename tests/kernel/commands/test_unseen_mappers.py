"""What an ordinary user is told of his object that root maps as well, out of his sight."""

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.kernel.support.commands import NOBODY, run
from tests.kernel.support.driver import MAP_SHARED, PAGE, Target, target
from tests.kernel.support.swap import ON_ZRAM
from tests.kernel.support.verdicts import GIVE_AWAY
from tests.kernel.workloads.base import page_out
from tests.kernel.workloads.shm_builder import fill

PAGES = 601


@pytest.fixture
def both() -> Iterator[tuple[Target, Target, int]]:
    """Yield the user's process, one of root, and a memfd that both have open."""
    with ExitStack() as stack:
        users, roots = stack.enter_context(target()), stack.enter_context(target())
        users.run(GIVE_AWAY, uid=NOBODY)
        fd = users.os("memfd_create", "of a user", 1)
        users.os("ftruncate", fd, PAGES * PAGE)
        roots_fd = roots.os("open", f"/proc/{users.pid}/fd/{fd}", 2)
        roots.os("dup2", roots_fd, fd)
        yield users, roots, fd


def _shares(command: str, name: str, *, is_nobody: bool) -> tuple[dict[int, float | None], str]:
    done = run(command, "--json", is_nobody=is_nobody)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = found.get("tables", found)["processes"]
    return {row["pid"]: row[name] for row in rows}, " ".join(found["notes"])


@ON_ZRAM
def test_a_share_is_not_known_where_others_may_map_it(
    swap: str, both: tuple[Target, Target, int]
) -> None:
    users, roots, fd = both
    start = users.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    fill(users, start, range(PAGES))
    page_out(users, start, range(PAGES))
    roots.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    for command in ("swap", "ps"):
        shares, notes = _shares(command, "swap_share_bytes", is_nobody=False)
        half = PAGES * PAGE / 2
        assert (shares[users.pid], shares[roots.pid]) == (half, half)
        assert "share is not known" not in notes
        shares, notes = _shares(command, "swap_share_bytes", is_nobody=True)
        assert shares[users.pid] is None
        assert "share is not known of 1 object on swap that processes not looked at" in notes
        done = run(command, "--csv", is_nobody=True)
        (row,) = [r for r in csv.DictReader(done.stdout.splitlines()) if _is(r, users)]
        assert row["swap_share_bytes"] == ""


def _is(row: dict[str, str], users: Target) -> bool:
    return row["pid"] == str(users.pid)


@ON_ZRAM
def test_a_group_has_no_share_if_a_member_has_none(
    swap: str, both: tuple[Target, Target, int]
) -> None:
    users, _, fd = both
    start = users.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    fill(users, start, range(PAGES))
    page_out(users, start, range(PAGES))
    done = run("ps", "--group-by", "user", "--json", is_nobody=True)
    (group,) = json.loads(done.stdout)["tables"]["groups"]
    assert group["swap_share_bytes"] is None
    ledger = json.loads(run("swap", "--json", is_nobody=True).stdout)
    tables = ledger["tables"]
    cgroups = {row["path"]: row["swap_share_bytes"] for row in tables["cgroups"]}
    (process,) = [row for row in tables["processes"] if row["pid"] == users.pid]
    assert cgroups[process["cgroup"]] is None


def test_what_only_others_map_is_not_said_to_be_mapped_by_none(
    both: tuple[Target, Target, int],
) -> None:
    users, roots, fd = both
    fill(roots, roots.mmap(PAGES, flags=MAP_SHARED, fd=fd), range(PAGES))
    name = f"{users.pid}:{fd}"
    for is_nobody, seen in ((False, "present"), (True, "cached")):
        done = run("shm", name, "--json", is_nobody=is_nobody)
        found = json.loads(done.stdout)
        (item,) = found["tables"]["objects"]
        assert item[f"{seen}_pages"] * PAGE == PAGES * PAGE == item["size_bytes"]
        note = "cached pages of 1 object may be mapped by processes not looked at"
        assert (note in found["notes"]) == is_nobody
        text = " ".join(run("shm", name, is_nobody=is_nobody).stdout.split())
        assert ("mapped by no process that could be looked at" in text) == is_nobody


@ON_ZRAM
def test_swap_of_sharing_is_the_same_figure_to_all(
    swap: str, both: tuple[Target, Target, int]
) -> None:
    users, _, _ = both
    start = users.mmap(PAGES)
    fill(users, start, range(PAGES))
    page_out(users, start, range(PAGES))
    pids = [str(pid) for pid in (users.pid, users.fork().pid)]
    entries, shares = {}, {}
    for is_nobody in (False, True):
        done = run("sharing", *pids, "--json", is_nobody=is_nobody)
        rows = json.loads(done.stdout)["tables"]["processes"]
        entries[is_nobody] = [row["swap_entries_pages"] for row in rows]
        shares[is_nobody] = [row["swap_share_bytes"] for row in rows]
    assert entries[True] == entries[False]
    assert min(entries[True]) >= PAGES
    # The kernel has divided them between the two.
    assert shares[True] == [
        pytest.approx(pages * PAGE / 2, rel=0.01) for pages in entries[True]
    ]
    assert shares[False] == [None, None]
