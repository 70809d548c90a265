"""Processes of one scan share what their objects said, and it is what each would hear."""

from memlens import MemlensError, ProcessGone, map_process, map_processes
from tests.kernel.support.driver import target


def test_shared_answers_are_those_of_each_alone(machine: None) -> None:
    with target() as one, target() as other:
        # Sleeping processes of the same program: their libraries are the same objects.
        pids = [one.pid, other.pid, one.pid]
        together = list(map_processes(pids))
        for pid, found in zip(pids, together, strict=True):
            assert not isinstance(found, MemlensError)
            alone = map_process(pid)
            assert [row.start for row in found.each] == [row.start for row in alone.each]
            for row, expected in zip(found.each, alone.each, strict=True):
                assert list(row.runs) == list(expected.runs), row.path
                assert (row.start, row.object) == (expected.start, expected.object)


def test_a_process_that_is_gone_takes_no_other_with_it(machine: None) -> None:
    with target() as driven:
        gone, found = map_processes([1 << 22 | 1, driven.pid])
        assert isinstance(gone, ProcessGone)
        assert not isinstance(found, MemlensError)
        assert found.process.pid == driven.pid
