"""
Record what memlens says of the programs beside this and of this machine, for the documentation.

    unshare --mount --ipc --pid --fork --mount-proc .venv/bin/python docs/examples/record.py

Needs root, zram, and a .venv that other users may run.  The examples run on /srv in namespaces
of their own, so that paths are the same on every machine and nothing else of it is seen; swap
is made as the tests make it.  `make docs` draws what is recorded.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from memlens.kernel.cgroups import find_hierarchy, parse_cgroup  # noqa: E402
from memlens.kernel.procfs import Host  # noqa: E402
from memlens.physical.flagreport import count_flags  # noqa: E402
from memlens.residency.capture import map_process  # noqa: E402
from memlens.residency.records import Kernel  # noqa: E402
from memlens.residency.steps import explain_page  # noqa: E402
from memlens.selftest.demo import run_demo  # noqa: E402
from memlens.selftest.records import Features  # noqa: E402
from memlens.sharing.frames import read_sharing  # noqa: E402
from memlens.sharing.processes import ProcessFilter, list_processes  # noqa: E402
from memlens.shm.inventory import list_shared_memory  # noqa: E402
from memlens.swap.ledger import read_swap_ledger  # noqa: E402
from recorded import write_report  # noqa: E402
from tests.kernel.support.machine import machine_lock  # noqa: E402
from tests.kernel.support.swap import swap_area  # noqa: E402

MIB = 1 << 20
NOBODY = 65534


@contextmanager
def srv() -> Iterator[Path]:
    """Put a directory on disk on /srv, since what lies on a tmpfs would be shared memory."""
    disk = Path(sys.prefix) / "example"
    disk.mkdir()
    try:
        subprocess.run(["mount", "--bind", disk, "/srv"], check=True)
        try:
            yield Path("/srv")
        finally:
            subprocess.run(["umount", "--lazy", "/srv"], check=True)
    finally:
        shutil.rmtree(disk)


@contextmanager
def running(program: Path, *arguments: Path) -> Iterator[int]:
    """Build and run an example until it is ready; yield its PID."""
    source = (HERE / program.name).with_suffix(".c")
    subprocess.run(["gcc", "-O1", "-static", "-o", program, source], check=True)
    command = [program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit(f"{program} did not start")
            yield process.pid
        finally:
            process.kill()


def record_server() -> None:
    with ExitStack() as stack:
        stack.enter_context(machine_lock())
        directory = stack.enter_context(srv())
        stack.enter_context(swap_area("zram", directory))
        table = directory / "table"
        table.write_bytes(os.urandom(12 * MIB))
        with table.open() as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        pid = stack.enter_context(running(directory / "server", table))
        whole = map_process(pid)
        write_report("map", whole)
        buffers = next(row for row in whole.each if row.path == "/dev/zero (deleted)")
        write_report("page", explain_page(pid, buffers.start + 30 * MIB))


def record_workers() -> None:
    with ExitStack() as stack:
        stack.enter_context(machine_lock())
        directory = stack.enter_context(srv())
        stack.enter_context(cgroup("web"))
        # Where it is mounted twice, one of the two cannot be looked at.
        subprocess.run(["umount", "--lazy", "/dev/shm"], check=True)
        uploads = directory / "uploads"
        uploads.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", uploads], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", uploads], check=True)
        stack.enter_context(swap_area("zram", directory))
        program = directory / "workers"
        pid = stack.enter_context(running(program, uploads / "upload-7f31"))
        stack.callback(remove_segments)
        write_report("swap", read_swap_ledger())
        write_report("shm", list_shared_memory())
        workers = list_processes(group_by="name", keep=ProcessFilter(name="workers"))
        write_report("ps", workers)
        write_report("sharing", read_sharing([pid], has_descendants=True))
        write_report("flags", count_flags([pid]))


@contextmanager
def cgroup(name: str) -> Iterator[None]:
    """Be in a memory cgroup of this name, so that what the examples touch is charged to it."""
    root = find_hierarchy(Host()).root
    former = parse_cgroup(Path("/proc/self/cgroup").read_bytes())
    directory = Path(root, name)
    directory.mkdir()
    try:
        (directory / "cgroup.procs").write_text("0")
        try:
            yield
        finally:
            Path(f"{root}{former}/cgroup.procs").write_text("0")
    finally:
        # What it is still charged for, files for one, moves to its parent.
        directory.rmdir()


def remove_segments() -> None:
    """Remove the segments of this IPC namespace: they outlive the program that made them."""
    subprocess.run(["ipcrm", "--all=shm"], check=True)


def without_suffix(kernel: Kernel) -> Kernel:
    """Return the kernel without what its builder added to the version."""
    return replace(kernel, release=kernel.release.partition("-")[0])


def record_demo() -> None:
    with machine_lock():
        write_report("demo", run_demo(use_swap=True))


def record_doctor() -> None:
    """Record this as an ordinary user, who has something to be told."""
    command = ["setpriv", "--reuid", f"{NOBODY}", "--regid", f"{NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*command, sys.executable, "-B", "-m", "memlens", "doctor", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    write_report("doctor", Features.from_json(done.stdout))


def main() -> None:
    record_server()
    record_workers()
    record_demo()
    record_doctor()


if __name__ == "__main__":
    main()
