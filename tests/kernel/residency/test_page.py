"""``explain_page`` on the real kernel: the verdict of ``map_process``, and its reasons."""

import fcntl
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from memlens.errors import AccessDenied, MemlensError, ProcessGone
from memlens.pages.classes import CLASS_OF, PageClass
from memlens.residency.capture import map_process
from memlens.residency.records import PageExplanation, PageVerdict
from memlens.residency.steps import explain_page
from memlens.schema import json_schema
from memlens.selftest.demo import Specimen, SpecimenProcess
from tests.kernel.support.verdicts import can_walk

PAGE = os.sysconf("SC_PAGE_SIZE")
MEMLENS = (sys.executable, "-m", "memlens", "page")
# Pages of each specimen: its ends, and each part of the one with many classes.
LOOKED_AT = (0, 2, 3, 6, 7, 11, 12, 15, 18, 20, 22)
TRIES = 4


@pytest.fixture(scope="module", params=["zram", "file"])
def maker(request: pytest.FixtureRequest, machine: None) -> Iterator[SpecimenProcess]:
    from tests.kernel.support.machine import Missing
    from tests.kernel.support.swap import swap_area

    path = request.getfixturevalue("tmp_path_factory").mktemp("swap")
    try:
        with (
            swap_area(request.param, path),
            SpecimenProcess("zram" if request.param == "zram" else "slow") as process,
        ):
            yield process
    except Missing as missing:
        pytest.skip(str(missing))


def pages_of(specimen: Specimen) -> list[int]:
    return [page for page in LOOKED_AT if page < specimen.pages] + [specimen.pages - 1]


def explained(maker: SpecimenProcess, specimen: Specimen, page: int) -> PageExplanation:
    # Any address in the page will do.
    return explain_page(maker.pid, specimen.address + page * PAGE + 7)


def family(specimens: list[Specimen], family: str, how: str) -> Specimen:
    return next(row for row in specimens if (row.family, row.how) == (family, how))


def test_every_specimen_gets_the_verdict_of_the_map(maker: SpecimenProcess) -> None:
    """Both are compared while the specimen is proven to be as it was made."""
    todo = {row.number: row for row in maker.make() if not row.failure}
    assert len(todo) > 40
    for _ in range(TRIES):
        wrong = _differences(maker, list(todo.values()))
        moved = maker.disproofs()
        assert not {number: text for number, text in wrong.items() if number not in moved}
        if not moved:
            return
        todo = {row.number: row for row in maker.make(moved)}
    pytest.fail(f"never at rest: {moved}")


def _differences(maker: SpecimenProcess, specimens: list[Specimen]) -> dict[int, str]:
    whole = map_process(maker.pid)
    wrong = {}
    for specimen in specimens:
        for page in pages_of(specimen):
            address = specimen.address + page * PAGE
            found = explained(maker, specimen, page)
            mapping = next(m for m in whole.each if m.start <= address < m.stop)
            wanted = PageClass(mapping.classes()[(address - mapping.start) // PAGE])
            expected = [labels for n, labels in specimen.expected for _ in range(n)][page]
            labels = {class_of(found).label, wanted.label}
            if class_of(found) != wanted and labels <= {*expected}:
                # A copy in the swap cache may go at any time, and does not disprove.
                found, wanted = _at_one_moment(maker, specimen, page)
            if class_of(found) != wanted or wanted.label not in expected or found.notes:
                wrong[specimen.number] = f"{specimen.how}: {page} is {class_of(found).label}"
    return wrong


def _at_one_moment(
    maker: SpecimenProcess, specimen: Specimen, page: int
) -> tuple[PageExplanation, PageClass]:
    """Return what the page is said to be between two maps that say the same."""
    address = specimen.address + page * PAGE

    def class_now() -> PageClass:
        (mapping,) = map_process(maker.pid, start=address, stop=address + PAGE).each
        return PageClass(mapping.classes()[(address - mapping.start) // PAGE])

    for _ in range(TRIES):
        before, found, after = class_now(), explained(maker, specimen, page), class_now()
        if before == after:
            return found, after
    pytest.fail(f"never at rest: {specimen.how}, page {page}")


def made(maker: SpecimenProcess, kind: str, how: str, page: int = 0) -> PageExplanation:
    """Return the explanation of a page that was as it was made before and after."""
    number = family(maker.make(), kind, how).number
    for _ in range(TRIES):
        specimen = maker.make([number])[0]
        found = explained(maker, specimen, page)
        if number not in maker.disproofs():
            return found
    pytest.fail(f"never at rest: {kind}, {how}")


def verdict_of(page: PageExplanation) -> PageVerdict:
    assert page.verdict is not None
    return page.verdict


def class_of(page: PageExplanation) -> PageClass:
    return CLASS_OF[verdict_of(page).page_class]


def text_of(page: PageExplanation) -> str:
    return "\n".join(f"{step.asked}: {step.answer}: {step.meaning}" for step in page.steps)


def test_a_swapped_private_page_names_its_slot(maker: SpecimenProcess) -> None:
    found = made(maker, "private memory", "swapped out")
    assert found.swap is not None
    word = verdict_of(found).word
    assert word is not None
    assert (found.swap.slot, found.swap.area) == ((word >> 5) & ((1 << 50) - 1), 0)
    with open("/proc/swaps") as file:
        assert found.swap.path == file.read().split("\n")[1].split()[0]
    assert found.object is None
    assert "swapped out: swap area 0" in text_of(found)


def test_a_swapped_shared_page_is_empty_in_pagemap_and_its_object_is_asked(
    maker: SpecimenProcess,
) -> None:
    found = made(maker, "memfd", "swapped out", 5)
    assert verdict_of(found).word == 0
    assert found.swap is not None
    with open("/proc/swaps") as file:
        assert (found.swap.area, found.swap.path) == (0, file.read().split("\n")[1].split()[0])
    assert f"swap area 0, slot {found.swap.slot}: on swap" in text_of(found)
    assert found.folio is None
    assert found.object is not None
    assert (found.object.kind, found.object.offset_bytes) == ("shmem", 5 * PAGE)
    assert "nr_cache 0, nr_evicted 1" in text_of(found)
    asked = [step.asked for step in found.steps]
    assert asked.index(next(a for a in asked if "lseek" in a)) < asked.index(
        next(a for a in asked if "pagemap again" in a)
    )


def test_a_shared_page_in_ram_has_a_folio_and_who_is_charged(maker: SpecimenProcess) -> None:
    found = made(maker, "memfd", "userfaultfd marker over pages in RAM")
    assert found.folio is not None
    assert (found.folio.order, found.folio.is_uptodate) == (0, True)
    with open(f"/proc/{maker.pid}/cgroup") as file:
        paths = [line.split(":", 2)[2].strip() for line in file]
    assert found.folio.cgroup in paths
    private = made(maker, "private memory", "swapped out")
    assert private.folio is None


def test_without_the_walk_a_shared_page_has_no_slot(
    maker: SpecimenProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", "cachewalk")
    found = made(maker, "memfd", "swapped out", 5)
    assert class_of(found) in (PageClass.SWAPPED, PageClass.SWAP_CACHED)
    assert found.swap is None
    assert "BPF" not in text_of(found)


def test_a_marker_is_told_from_swap(maker: SpecimenProcess) -> None:
    found = made(maker, "memfd", "userfaultfd marker over pages in RAM")
    assert class_of(found) == PageClass.CACHED
    assert "not swap" in text_of(found)
    assert "uffd wp" in verdict_of(found).attributes


def test_attributes_of_a_private_copy_and_of_a_huge_page(maker: SpecimenProcess) -> None:
    copy = made(maker, "memfd", "private mapping, written: copies")
    assert "private copy" in verdict_of(copy).attributes
    assert verdict_of(copy).pfn
    assert "anonymous" in verdict_of(copy).kpage_flags
    huge = made(maker, "private memory", "written, as one huge page", 100)
    assert "huge" in verdict_of(huge).attributes
    assert "thp" in verdict_of(huge).kpage_flags


def test_past_the_end_the_size_decides(maker: SpecimenProcess) -> None:
    found = made(maker, "file on disk", "mapping longer than the file", 22)
    assert class_of(found) == PageClass.BEYOND_END
    assert "past the end" in text_of(found)
    assert "cachestat" not in text_of(found)


CHILD = """
import mmap, sys
shared = mmap.mmap(int(sys.argv[1]), {size}, offset={offset})
{act}
print(flush=True)
sys.stdin.read()
"""


def test_other_processes_that_map_the_very_page() -> None:
    """At another offset of the mapping, mapped there or not; others map other pages."""
    fd = os.memfd_create("x")
    os.ftruncate(fd, 8 * PAGE)
    own = mmap.mmap(fd, 8 * PAGE)
    own[5 * PAGE] = 1
    address = int(np.frombuffer(own, np.uint8).ctypes.data) + 5 * PAGE
    children = [
        _child(fd, CHILD.format(size=4 * PAGE, offset=4 * PAGE, act=f"shared[{PAGE}] = 2")),
        _child(fd, CHILD.format(size=8 * PAGE, offset=0, act="")),
        _child(fd, CHILD.format(size=2 * PAGE, offset=0, act="shared[0] = 1")),
    ]
    try:
        found = explain_page(os.getpid(), address)
    finally:
        for child in children:
            child.communicate()
    rows = {row.pid: row for row in found.holders}
    assert set(rows) == {os.getpid(), children[0].pid, children[1].pid}
    assert rows[os.getpid()].page * PAGE == address
    assert [rows[pid].is_present for pid in (os.getpid(), children[0].pid)] == [True, True]
    assert rows[children[1].pid].is_present is False
    assert not any(row.is_private_copy for row in found.holders)
    os.close(fd)


def _child(fd: int, code: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(fd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(fd,),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    return process


def test_kernel_memory_and_the_kernels_half() -> None:
    with open("/proc/self/maps") as file:
        rows = [line.split() for line in file]
    for row in rows:
        if row[-1] in ("[vvar]", "[vsyscall]"):
            found = explain_page(os.getpid(), int(row[0].split("-")[0], 16))
            assert class_of(found) == PageClass.DEVICE, row
            assert found.steps


def test_unmapped_addresses_name_their_neighbours() -> None:
    with pytest.raises(MemlensError, match=r"not mapped in process \d+; above it [0-9a-f]+-"):
        explain_page(os.getpid(), 0x10)
    with pytest.raises(MemlensError, match="not mapped in process"):
        explain_page(os.getpid(), 1 << 62)


def test_beyond_64_bits_and_no_process() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        explain_page(os.getpid(), 1 << 64)
    with pytest.raises(ProcessGone):
        explain_page(1 << 22, 0)


@pytest.mark.parametrize(
    ("address", "code", "text"),
    [
        ("nonsense", 2, "not a hexadecimal address"),
        ("1" * 17, 2, "beyond 64 bits"),
        ("10", 1, "is not mapped in process"),
    ],
)
def test_the_command_refuses_in_one_line(address: str, code: int, text: str) -> None:
    done = subprocess.run([*MEMLENS, str(os.getpid()), address], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout == ""
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_as_json_and_as_text() -> None:
    area = mmap.mmap(-1, 3 * PAGE)
    area[0] = 1
    address = f"{int(np.frombuffer(area, np.uint8).ctypes.data) + PAGE:x}"
    argv = [*MEMLENS, str(os.getpid()), address]
    found = json.loads(subprocess.check_output([*argv, "--json"]))
    assert found["schema"] == "memlens.page/2"
    jsonschema.validate(found, json_schema(PageExplanation))
    assert found["sections"]["verdict"]["page_class"] == "none"
    assert found["sections"]["object"]["offset_bytes"] == PAGE
    environment = os.environ | {"COLUMNS": "80"}
    text = subprocess.check_output(argv, text=True, env=environment)
    assert "\nnone: never allocated" in text
    assert max(map(len, text.split("\n"))) <= 80
    assert "\x1b" not in text


def test_without_a_right_to_the_object_the_reason_is_given() -> None:
    area = mmap.mmap(-1, PAGE)
    address = f"{int(np.frombuffer(area, np.uint8).ctypes.data):x}"
    done = subprocess.run(
        [*MEMLENS, str(os.getpid()), address, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"MEMLENS_DISABLE": "map_files,cachewalk"},
    )
    found = json.loads(done.stdout)
    verdict = found["sections"]["verdict"]
    assert verdict["page_class"] == "unknown"
    assert "map_files is switched off" in verdict["reason"]


@pytest.mark.parametrize("kind", ["tmpfs", "disk"])
def test_the_walk_answers_for_a_file_under_a_lease(kind: str, tmp_path: Path) -> None:
    """It needs no descriptor, so that the lease is not broken."""
    if not can_walk():
        pytest.skip("needs the page-cache walk")
    directory = Path("/dev/shm") if kind == "tmpfs" else tmp_path
    path = directory / f"memlens-test-{os.getpid()}"
    with path.open("w+b", buffering=0) as file:
        try:
            os.ftruncate(file.fileno(), 3 * PAGE)
            os.pwrite(file.fileno(), b"x", PAGE)
            area = mmap.mmap(file.fileno(), 3 * PAGE)
            start = int(np.frombuffer(area, np.uint8).ctypes.data)
            os.ftruncate(file.fileno(), 2 * PAGE)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            found = [explain_page(os.getpid(), start + page * PAGE) for page in range(3)]
            assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_WRLCK
        finally:
            path.unlink()
    # Of a file on disk the walk does not tell a hole from what the disk holds.
    first = PageClass.NONE if kind == "tmpfs" else PageClass.UNKNOWN
    assert [class_of(page) for page in found] == [first, PageClass.CACHED, PageClass.BEYOND_END]
    assert ("lease" in verdict_of(found[0]).reason) == (first is PageClass.UNKNOWN)
    assert not verdict_of(found[1]).reason


def test_a_process_that_may_not_be_read_is_an_error() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=12345, group=12345) as other:
        code = (
            "import memlens, sys\n"
            "try: memlens.explain_page(int(sys.argv[1]), 0)\n"
            "except memlens.AccessDenied as error: print(error.needs)\n"
        )
        told = subprocess.check_output(
            [
                *("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
                *(sys.executable, "-c", code, str(other.pid)),
            ],
            text=True,
        )
        other.communicate()
    assert "root" in told
    assert AccessDenied.__mro__[1] is MemlensError
