"""
/proc/PID/maps of every process: who maps an object.

Documentation/filesystems/proc.rst.  Other processes come and go meanwhile, and an
ordinary user may read few of them: what could not be read is counted.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter


@dataclass(frozen=True, slots=True)
class Mapper:
    """
    One mapping of an object by one process.

    :param pid: the process.
    :param name: its comm, raw.
    :param mapping: the line of its maps.
    :param word: the pagemap word of the page asked about, None if it may not be read.
    """

    pid: int
    name: str
    mapping: Mapping
    word: int | None


def list_pids(proc: str = "/proc") -> list[int]:
    """Return the processes that this /proc shows, in ascending order."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def find_mappers(
    device: str,
    inode: int,
    address_in: Callable[[Mapping], int | None],
    page_size_bytes: int,
    proc: str = "/proc",
) -> tuple[list[Mapper], int]:
    """
    Return the mappings of an object that cover a page of it, and how many were missed.

    :param device: as maps prints it.
    :param inode: of the object.
    :param address_in: gives the address of the page in a mapping of the object, None if
        it is not in there.
    :param page_size_bytes: size of a page.
    :return: the mappings, and the number of processes that could not be read.
    """
    found: list[Mapper] = []
    missed = 0
    for pid in list_pids(proc):
        try:
            with ProcessDir(pid, proc) as process:
                rows = _mappings_of(process, device, inode)
                for mapping in rows:
                    address = address_in(mapping)
                    if address is not None:
                        word = _word_at(process, address, page_size_bytes)
                        found.append(Mapper(pid, process.stat.name, mapping, word))
        except AccessDenied:
            missed += 1
        except MemlensError:
            # Ended meanwhile, a zombie or a kernel thread: it maps nothing.
            continue
    return found, missed


def _mappings_of(process: ProcessDir, device: str, inode: int) -> list[Mapping]:
    raw = process.read("maps")
    # Most processes do not name it at all, and parsing is what costs.
    wanted = f" {device} {inode}".encode()
    lines = b"\n".join(line for line in raw.split(b"\n") if wanted in line)
    rows = parse_maps(lines, f"{process.path}/maps")
    return [row for row in rows if row.device == device and row.inode == inode]


def _word_at(process: ProcessDir, address: int, page_size_bytes: int) -> int | None:
    try:
        path = f"{process.path}/pagemap"
        pagemap = Pagemap(process.open("pagemap"), page_size_bytes, Meter(), path)
    except MemlensError:
        return None
    try:
        words = pagemap.read_words(address // page_size_bytes, 1)
        return int(words[0]) if len(words) else None
    except MemlensError:
        return None
    finally:
        pagemap.close()
