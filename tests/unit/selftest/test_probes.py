"""How probes become answers; what the kernel says to them is in tests/kernel."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported
from memlens.kernel.procfs import SWITCHES, read_disabled
from memlens.scan.machine import Machine
from memlens.selftest.doctor import PROBE_TABLE, ProbeRow, probe_features, run_row
from memlens.selftest.probe_ground import (
    CAPABILITIES,
    Ground,
    parse_capabilities,
    parse_status,
    read_capabilities,
    read_reader,
)
from memlens.selftest.probe_others import Child
from memlens.selftest.records import Probe, Reader

GROUPS = {"own", "other", "frames", "tracking", "swap"}
NOBODY = Reader(65534, True, True, False)


def ground(*disabled: str) -> Ground:
    return Ground(Machine(disabled=frozenset(disabled)), "/proc/self", NOBODY)


def run(ask: Callable[[Ground], str], *disabled: str) -> Probe:
    def ask_mincore(place: Ground) -> str:
        return ask(place)

    row = ProbeRow("own", "a title", ask_mincore, "a privilege", "a kernel", ("smaps",))
    return run_row(row, ground(*disabled))


def raising(error: Exception) -> Callable[[Ground], str]:
    def ask(_: Ground) -> str:
        raise error

    return ask


def test_an_answer_is_the_proof() -> None:
    assert run(lambda _: "seen") == Probe("mincore", True, "seen", "", "", "own", "a title")


@pytest.mark.parametrize(
    ("error", "reason", "needs"),
    [
        (AccessDenied("no", path="/p", needs="luck"), "no", "a privilege"),
        (Unsupported("lacks it", path="/p"), "lacks it", "a kernel"),
        (ProcessGone("no file", path="/p"), "no file", "a kernel"),
        (MemlensError("nothing to try with"), "nothing to try with", "a privilege"),
        (PermissionError(1, "not permitted", "/p"), "Operation not permitted", "a privilege"),
        (OSError(38, "x"), "refused: this kernel cannot", "a kernel"),
    ],
)
def test_a_failure_is_a_reason_and_what_would_help(
    error: Exception, reason: str, needs: str
) -> None:
    found = run(raising(error))
    assert (found.is_available, found.proof) == (False, "")
    assert (found.reason, found.needs) == (reason, needs)
    assert not found.is_switched_off


@pytest.mark.parametrize("name", ["mincore", "smaps"])
def test_what_is_switched_off_is_not_asked(name: str) -> None:
    found = run(raising(AssertionError("asked")), name)
    assert found.is_switched_off
    assert not found.is_available
    assert name in found.reason
    assert found.needs == ""


def test_a_bug_is_not_taken_for_a_missing_interface() -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


def test_the_table() -> None:
    names = [row.name for row in PROBE_TABLE]
    assert len(names) == len(set(names))
    assert set(SWITCHES) <= set(names)
    for row in PROBE_TABLE:
        assert row.group in GROUPS
        assert row.title
        assert row.privilege
        assert row.kernel
        assert set(row.stands_on) <= set(SWITCHES)


def test_every_switch_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", ",".join(SWITCHES))
    found = probe_features()
    off = {probe.name for probe in found.interfaces if probe.is_switched_off}
    assert off == {*SWITCHES, "other_smaps", "other_map_files", "uffd_wp_async"}
    assert not any(found.has(name) for name in off)


def test_features_by_name() -> None:
    found = probe_features()
    assert found.probe("pagemap").name == "pagemap"
    assert found.missing() == tuple(row for row in found.interfaces if not row.is_available)
    with pytest.raises(KeyError):
        found.has("crystal_ball")


def test_not_a_proc(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="not a proc"):
        probe_features(str(tmp_path))
    with pytest.raises(Unsupported, match="no proc"):
        probe_features(str(tmp_path / "gone"))


def test_nothing_is_left_behind() -> None:
    def opened() -> set[str]:
        # The walker's descriptors stay, for the next to ask.
        return set(os.listdir("/proc/self/fd"))

    probe_features()
    before = opened()
    probe_features()
    assert opened() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_child_obeys_and_ends() -> None:
    place = ground()
    with place.pages(1, is_shared=True) as pages:
        assert not pages.head().strip(b"\0")
        with Child(pages, Machine(), 0) as child:
            pid = child.pid
            assert child.tell(b"w") == str(pid)
            assert pages.head().strip(b"\0")
        assert not os.path.exists(f"/proc/{pid}")


def test_a_child_that_cannot_says_so() -> None:
    place = ground()
    with (
        place.pages(1) as pages,
        # It looks itself up in a place where nobody is.
        Child(pages, Machine("/nowhere"), 0) as child,
        pytest.raises(MemlensError, match="child"),
    ):
        child.tell(b"w")


def test_capabilities() -> None:
    assert parse_capabilities(0) == ()
    assert parse_capabilities(1) == ("CAP_CHOWN",)
    assert parse_capabilities((1 << 41) - 1) == CAPABILITIES
    assert parse_capabilities(1 << 45) == ("CAP_45",)


def test_status() -> None:
    assert parse_status(b"Name:\ta: b\nCapEff:\t0000000000000001\n\n") == {
        "Name": "a: b",
        "CapEff": "0000000000000001",
    }


def test_reader(tmp_path: Path) -> None:
    (tmp_path / "status").write_bytes(b"CapEff:\t0000000000200000\nSeccomp:\t2\n")
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns" / "user").symlink_to("user:[4026531837]")
    (tmp_path / "ns" / "pid").symlink_to("pid:[4026532000]")
    found = read_reader(str(tmp_path))
    assert found == Reader(os.geteuid(), True, False, True)
    assert read_capabilities(str(tmp_path)) == ("CAP_SYS_ADMIN",)
    (tmp_path / "ns" / "user").unlink()
    assert read_reader(str(tmp_path)).is_init_user_namespace is None


def test_names_of_switches_may_have_blanks_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", " cachestat, mincore ,")
    assert read_disabled() == {"cachestat", "mincore"}
    monkeypatch.setenv("MEMLENS_DISABLE", "cache stat")
    with pytest.raises(ValueError, match="unknown cache stat"):
        read_disabled()
