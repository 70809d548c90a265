"""
Record what memlens says of docs/examples/server.c and of this machine, for the documentation.

    unshare --mount .venv/bin/python docs/examples/record.py

Needs root, zram, and a .venv that other users may run.  The example runs on /srv in a mount
namespace of its own, so that paths are the same on every machine; swap is made as the tests
make it.  `make docs` draws what is recorded.
"""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "kernel"), str(ROOT / "docs")]

from swapareas import machine_lock, swap_area  # noqa: E402

from memlens.account.abilities import Abilities  # noqa: E402
from memlens.account.capture import map_process  # noqa: E402
from memlens.account.demo import run_demo  # noqa: E402
from memlens.account.explain import explain_page  # noqa: E402
from memlens.account.model import Kernel  # noqa: E402
from recorded import write_record  # noqa: E402

MIB = 1 << 20
NOBODY = 65534


@contextmanager
def server(directory: Path) -> Iterator[int]:
    """Run the example; yield its PID."""
    program, table = directory / "server", directory / "table"
    subprocess.run(["gcc", "-O1", "-static", "-o", program, HERE / "server.c"], check=True)
    table.write_bytes(os.urandom(12 * MIB))
    with table.open() as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with subprocess.Popen([program, table], stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit("the example did not start")
            yield process.pid
        finally:
            process.kill()


def record_server() -> None:
    with ExitStack() as stack:
        # On disk, since a table on a tmpfs would be shared memory.
        disk = Path(sys.prefix) / "example"
        disk.mkdir()
        stack.callback(shutil.rmtree, disk)
        directory = Path("/srv")
        subprocess.run(["mount", "--bind", disk, directory], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", directory], check=True)
        stack.enter_context(machine_lock())
        stack.enter_context(swap_area("zram", disk))
        pid = stack.enter_context(server(directory))
        whole = map_process(pid)
        write_record("map", replace(whole, kernel=without_suffix(whole.kernel)))
        buffers = next(row for row in whole.mappings if row.path == "/dev/zero (deleted)")
        write_record("page", explain_page(pid, buffers.start + 30 * MIB))


def without_suffix(kernel: Kernel) -> Kernel:
    """Return the kernel without what its builder added to the version."""
    return replace(kernel, release=kernel.release.partition("-")[0])


def record_demo() -> None:
    with machine_lock():
        result = run_demo(use_swap=True)
    write_record("demo", replace(result, kernel=without_suffix(result.kernel)))


def record_doctor() -> None:
    """Record this as an ordinary user, who has something to be told."""
    command = ["setpriv", "--reuid", f"{NOBODY}", "--regid", f"{NOBODY}", "--clear-groups"]
    code = "import pickle, sys, memlens.account.abilities as a"
    code += "; sys.stdout.buffer.write(pickle.dumps(a.read_abilities('/proc')))"
    done = subprocess.run(
        [*command, sys.executable, "-B", "-c", code], stdout=subprocess.PIPE, check=True
    )
    found: Abilities = pickle.loads(done.stdout)
    version = found.features.kernel_release.partition("-")[0]
    features = replace(found.features, kernel_release=version)
    write_record("doctor", replace(found, features=features))


def main() -> None:
    record_server()
    record_demo()
    record_doctor()


if __name__ == "__main__":
    main()
