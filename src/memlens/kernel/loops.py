"""
Loop devices over files that have no name any more: /sys/block/loopN/loop/backing_file.

Documentation/ABI/testing/sysfs-block-loop.  Such a file is no descriptor of any process.
"""

import os

from memlens.kernel.procfs import decode_bytes, read_file

_DELETED = " (deleted)"


def list_deleted_backing_files(sys: str = "/sys") -> list[tuple[str, str]]:
    """Return name and file, raw, of each loop device whose file was deleted."""
    found = []
    try:
        names = sorted(os.listdir(f"{sys}/block"))
    except OSError:
        return []
    for name in names:
        if not name.startswith("loop"):
            continue
        try:
            path = decode_bytes(read_file(f"{sys}/block/{name}/loop/backing_file")).rstrip("\n")
        except OSError:
            continue
        if path.endswith(_DELETED):
            found.append((name, path.removesuffix(_DELETED)))
    return found
