"""The context of a scan: who is told, what ends it, what may be used."""

import pytest

from memlens.scan.machine import Machine, Stopped


def test_the_caller_is_told_and_asked() -> None:
    told: list[tuple[int, int]] = []
    machine = Machine(
        on_progress=lambda done, total: told.append((done, total)),
        should_stop=lambda: len(told) > 1,
    )
    machine.step(1, 3)
    assert not machine.is_over()
    with pytest.raises(Stopped):
        machine.step(2, 3)
    assert told == [(1, 3), (2, 3)]
    assert machine.why_over() == "the scan was stopped"


def test_who_was_stopped_once_is_stopped_for_good() -> None:
    answers = iter([False, True])
    machine = Machine(should_stop=lambda: next(answers))
    machine.check_stop()
    for _ in range(2):
        with pytest.raises(Stopped):
            machine.check_stop()


def test_a_budget_counts_from_the_making_of_the_machine() -> None:
    assert not Machine(budget_s=3600).is_over()
    machine = Machine(budget_s=-1)
    assert machine.is_over()
    assert machine.why_over() == "the budget was spent"


def test_what_is_needed_after_a_stop_is_told_to_nobody() -> None:
    machine = Machine(
        "/somewhere",
        on_progress=lambda *_: pytest.fail("told"),
        should_stop=lambda: True,
        budget_s=0,
    )
    assert machine.is_over()
    other = machine.unfollowed()
    other.step(1, 2)
    assert (other.root, other.meter) == ("/somewhere", machine.meter)


def test_what_is_switched_off_may_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", "smaps,pagemap_scan")
    machine = Machine()
    assert not machine.may("smaps")
    assert not machine.may("pagemap_scan")
    assert machine.may("mincore")
    assert Machine(disabled=frozenset()).may("smaps")


def test_cost_is_what_the_meter_counts() -> None:
    machine = Machine()
    machine.meter.add(10, 0.5)
    machine.meter.add(20, 0.25)
    assert (machine.cost().read_bytes, machine.cost().longest_read_s) == (30, 0.5)
