"""Fixtures of the kernel tests: swap of our own, and a machine left as it was found."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memlens import MemlensError
from memlens.kernel.cachewalk import CacheWalker
from tests.kernel.support import cgroups
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.machine import Missing, StateMoved, machine_lock, machine_state
from tests.kernel.support.swap import swap_area
from tests.kernel.support.verdicts import ATTEMPTS, ReportsOf
from tests.kernel.workloads.base import Entry, Workload

MUST_RUN = bool(os.environ.get("MEMLENS_REQUIRE_KERNEL"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Time tests alone: a session's fixtures may wait for the machine's lock."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(150, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: object) -> Iterator[None]:
    """Turn skips into failures where the kernel tests are required."""
    report = yield
    if MUST_RUN and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but MEMLENS_REQUIRE_KERNEL is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def machine() -> Iterator[None]:
    """Hold the machine's lock, and see that the machine is left as it was."""
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    if os.geteuid() != 0:
        pytest.skip("needs root: swap, other processes' pages")
    # SIGTERM as Ctrl-C: pytest ends, and tears its fixtures down.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with machine_lock():
        before = machine_state()
        yield
        assert machine_state() == before
    signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="session")
def squeeze(machine: None) -> Squeeze:
    """Return the maker of memory cgroups to reclaim from."""
    try:
        return cgroups.squeeze()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def swap(
    request: pytest.FixtureRequest, machine: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """
    Turn on one swap area; the parameter is its kind, ``none`` for no swap at all.

    Off again at the end of each module, since other modules bring swap of their own.
    """
    kind = request.param
    if kind == "none":
        yield kind
        return
    try:
        with swap_area(kind, tmp_path_factory.mktemp("swap")):
            yield kind
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def reports_of(swap: str, squeeze: Squeeze, tmp_path: Path) -> ReportsOf:
    """Return what builds a workload and has it looked at: it gives the reports, "" if none."""

    def look_at(entry: Entry, look: Callable[[Workload], list[str]]) -> str:
        for attempt in range(ATTEMPTS):
            try:
                with entry.open(swap, squeeze, tmp_path / str(attempt)) as workload:
                    return "\n".join(filter(None, look(workload)))
            except StateMoved:
                # Reclaim took what was built.  A wrong builder never gets through.
                if attempt == ATTEMPTS - 1:
                    raise
            except Missing as missing:
                pytest.skip(str(missing))
        raise AssertionError("unreachable")

    return look_at


@pytest.fixture(scope="module")
def walker(machine: None) -> Iterator[CacheWalker]:
    """Return a walker of the page cache."""
    try:
        made = CacheWalker()
    except MemlensError as reason:
        pytest.skip(str(reason))
    with made:
        yield made
