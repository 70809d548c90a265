"""Whose memory is whose: this process and children of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cmp_to_key
from pathlib import Path

import pytest

from memlens.errors import ProcessGone
from memlens.kernel.procfs import Host
from memlens.kernel.syscalls import compare_memory, has_memory, is_own_namespace


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    code = "import sys; sys.stdin.read()"
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
            )
            for _ in range(4)
        ]
        yield started


def test_memories_have_an_order(children: list[subprocess.Popen[bytes]]) -> None:
    pids = [os.getpid(), *(child.pid for child in children)]
    ordered = sorted(pids, key=cmp_to_key(compare_memory))
    for place, one in enumerate(ordered):
        for other_place, other in enumerate(ordered):
            expected = (place > other_place) - (place < other_place)
            assert compare_memory(one, other) == expected


def test_the_dead_have_none(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children[:2]:
        assert has_memory(child.pid, Host())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombies = [child.pid for child in children[:2]]
    assert compare_memory(*zombies) == 0
    assert not any(has_memory(pid, Host()) for pid in zombies)
    for child in children[:2]:
        child.wait()
    assert not has_memory(zombies[0], Host())
    with pytest.raises(ProcessGone):
        compare_memory(os.getpid(), zombies[0])


def test_another_proc_has_other_numbers(tmp_path: Path) -> None:
    assert is_own_namespace(Host())
    assert not is_own_namespace(Host(str(tmp_path)))
    (tmp_path / "self").symlink_to(str(os.getpid()))
    assert not is_own_namespace(Host(str(tmp_path)))
