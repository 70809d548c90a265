"""
Record what `memlens map` says of docs/examples/server.c, for the picture in README.md.

    unshare --mount .venv/bin/python docs/examples/record.py

Needs root and zram.  The program runs from a directory on /srv in a mount namespace of its own,
so that paths are the same on every machine; swap is made as the tests make it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tests" / "kernel"))

from swapareas import machine_lock, swap_area  # noqa: E402

TABLE_BYTES = 12 << 20


@contextmanager
def server(directory: Path) -> Iterator[int]:
    """Run the example; yield its PID."""
    program, table = directory / "server", directory / "table"
    subprocess.run(["gcc", "-O1", "-static", "-o", program, HERE / "server.c"], check=True)
    table.write_bytes(os.urandom(TABLE_BYTES))
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


def main() -> None:
    with ExitStack() as stack:
        # On disk, since a table on a tmpfs would be shared memory.
        disk = Path(sys.prefix) / "example"
        disk.mkdir()
        stack.callback(shutil.rmtree, disk)
        directory = Path("/srv")
        subprocess.run(["mount", "--bind", disk, directory], check=True)
        stack.enter_context(machine_lock())
        stack.enter_context(swap_area("zram", disk))
        pid = stack.enter_context(server(directory))
        command = [sys.executable, "-m", "memlens", "map", str(pid), "--json", "--pages"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        subprocess.run(["umount", "--lazy", directory], check=True)
    found = json.loads(done.stdout)
    found["kernel"]["release"] = found["kernel"]["release"].partition("-")[0]
    lines = ",\n".join(json.dumps(mapping) for mapping in found.pop("mappings"))
    head = json.dumps(found, indent=1).removesuffix("\n}")
    (HERE / "map.json").write_text(f'{head},\n "mappings": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
