"""
The suite's own swap, one area at a time.

The two kinds differ: on zram a page that went out is gone from RAM at once, on a swap
file the copy stays in the swap cache until something reclaims it.  With zswap before the
file, the bytes stay in RAM, compressed, and no interface tells.  Everything made here is
taken away again, also when a test fails or the run is ended by a signal.
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel.support.machine import ZSWAP, Missing, setting, undone_at_exit, wait_until

ZRAM_SIZE_BYTES = 512 << 20
FILE_SIZE_BYTES = 256 << 20
ON_ZRAM = pytest.mark.parametrize("swap", ["zram"], indirect=True)


@contextmanager
def swap_area(kind: str, directory: Path) -> Iterator[Path]:
    """
    Turn on a swap area of this kind as the only one, without readahead.

    Readahead would carry the neighbours of a page that is read back into the swap cache;
    workloads put into the swap cache what they want there.
    """
    others = Path("/proc/swaps").read_text().splitlines()[1:]
    if others:
        raise Missing(f"swap is on already: {others}")
    make = {"zram": _zram_device, "file": _swap_file, "zswap": _swap_file}[kind]
    with ExitStack() as stack:
        if kind == "zswap":
            if not ZSWAP.exists():
                raise Missing("no zswap in this kernel")
            stack.enter_context(setting(ZSWAP, "Y"))
        stack.enter_context(setting(Path("/proc/sys/vm/page-cluster"), 0))
        area = stack.enter_context(make(directory))
        _run("mkswap", str(area))
        stack.enter_context(undone_at_exit(lambda: _swap_off(area)))
        _run("swapon", str(area))
        yield area


def _run(program: str, *arguments: str) -> str:
    environment = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise Missing(f"{program} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _swap_off(area: Path) -> None:
    listed = Path("/proc/swaps").read_text()
    if any(line.split()[0] == str(area) for line in listed.splitlines()):
        _run("swapoff", str(area))


@contextmanager
def _zram_device(directory: Path) -> Iterator[Path]:
    control = Path("/sys/class/zram-control")
    if not control.is_dir():
        raise Missing("no zram in this kernel")
    idle = [path for path in Path("/sys/block").glob("zram*") if _is_idle(path)]
    if idle:
        sysfs, is_added = idle[0], False
    else:
        sysfs, is_added = (
            Path(f"/sys/block/zram{(control / 'hot_add').read_text().strip()}"),
            True,
        )

    def undo() -> None:
        wait_until(lambda: _try_reset(sysfs), f"reset of {sysfs.name}")
        if is_added:
            (control / "hot_remove").write_text(sysfs.name.removeprefix("zram"))

    with undone_at_exit(undo):
        (sysfs / "disksize").write_text(str(ZRAM_SIZE_BYTES))
        yield Path("/dev") / sysfs.name


def _is_idle(sysfs: Path) -> bool:
    return (sysfs / "disksize").read_text().strip() == "0"


def _try_reset(sysfs: Path) -> bool:
    try:
        (sysfs / "reset").write_text("1")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@contextmanager
def _swap_file(directory: Path) -> Iterator[Path]:
    area = directory / "swapfile"
    with undone_at_exit(lambda: area.unlink(missing_ok=True)):
        descriptor = os.open(area, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, FILE_SIZE_BYTES)
        finally:
            os.close(descriptor)
        yield area


def used_pages() -> int:
    """Return the used slots of /proc/swaps."""
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return sum(int(line.split()[3]) * 1024 // os.sysconf("SC_PAGE_SIZE") for line in lines)
