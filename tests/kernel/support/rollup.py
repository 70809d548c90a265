"""RSS, PSS and USS of ``memlens ps`` against smaps_rollup."""

from pathlib import Path

from tests.kernel.support.commands import run_json, unless_others_begin
from tests.kernel.support.driver import PAGE
from tests.kernel.support.machine import StateMoved


def hold_against_rollup(pids: list[int]) -> None:
    """
    Compare RSS, PSS and USS of processes that stand still with smaps_rollup.

    :raises StateMoved: if others mapped or unmapped pages of theirs meanwhile.
    """
    with unless_others_begin():
        before = [read_rollup(pid) for pid in pids]
        rows = {row["pid"]: row for row in run_json("ps", *pids)["tables"]["processes"]}
        if [read_rollup(pid) for pid in pids] != before:
            raise StateMoved("smaps_rollup changed")
        assert set(rows) == set(pids)
        for pid, sums in zip(pids, before, strict=True):
            row = rows[pid]
            assert row["rss_pages"] * PAGE == sums["Rss"] * 1024
            alone = sums["Private_Clean"] + sums["Private_Dirty"]
            assert row["uss_pages"] * PAGE == alone * 1024
            assert is_rollup_pss(row["pss_pages"] * PAGE, sums["Pss"], row["rss_pages"])


def read_rollup(pid: int) -> dict[str, int]:
    """Return the sums of smaps_rollup in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name[:-1]: int(value) for name, value, *_ in map(str.split, lines)}


def is_rollup_pss(pss_bytes: float, rollup_kib: int, pages: int) -> bool:
    """
    Return whether a PSS is that of smaps_rollup.

    The kernel divides in units of 1/4096 byte, and rounds down for each page; then it rounds
    the sum down to KiB.
    """
    return 0 <= pss_bytes + 1e-3 - rollup_kib * 1024 < 1024 + pages / 4096 + 2e-3
