"""Memory that is neither anonymous nor in a page cache: rings, secrets, the kernel's own."""

import os
import socket
import stat
import struct

from tests.kernel.support import oracle
from tests.kernel.support.driver import MAP_SHARED, PAGE, READ_WRITE, pages_where
from tests.kernel.support.machine import StateMoved, wait_until
from tests.kernel.support.target import send
from tests.kernel.workloads.base import PRIME, Expected, P, Tools, Workload, entries, pattern

ENTRIES, workload = entries()


@workload()
def secret_memory(tools: Tools) -> Workload:
    """memfd_secret: what is mapped is there; of the rest nothing can be asked."""
    driven = tools.target()
    fd = driven.libc("syscall", oracle.SYS_MEMFD_SECRET, 0)
    driven.os("ftruncate", fd, PRIME * PAGE)
    states = pattern(("written", "untouched"), PRIME)
    start = driven.mmap(PRIME, flags=MAP_SHARED, fd=fd)
    driven.poke(start, pages_where(states, "written"))
    classes = [P.PRESENT if state == "written" else P.UNKNOWN for state in states]
    return Workload(
        driven, [Expected(driven.pid, start, classes, "table", 0, states, smaps=("Swap",))]
    )


@workload()
def io_uring(tools: Tools) -> Workload:
    """The rings of an io_uring, in RAM and mapped."""
    driven = tools.target()
    fd, buffers = driven.ask("libc", "syscall", 425, 64, bytes(120))
    (sq_entries,) = struct.unpack_from("<I", buffers[0])
    array_offset = struct.unpack_from("<I", buffers[0], 40 + 6 * 4)[0]
    size = array_offset + 4 * sq_entries
    pages = -(-size // PAGE)
    # The kernel chooses the address of a ring.
    start = driven.libc("mmap", None, pages * PAGE, READ_WRITE, MAP_SHARED, fd, 0)
    return Workload(
        driven, [Expected(driven.pid, start, [P.PRESENT] * pages, "table", smaps=("Swap",))]
    )


@workload()
def packet_ring(tools: Tools) -> Workload:
    """The ring of a packet socket."""
    driven = tools.target()
    fd = driven.libc("socket", socket.AF_PACKET, socket.SOCK_RAW, 0)
    blocks = 3
    request = struct.pack("<4I", 4 * PAGE, blocks, 2048, blocks * 4 * PAGE // 2048)
    driven.libc("setsockopt", fd, 263, 5, request, len(request))  # PACKET_RX_RING
    pages = blocks * 4
    start = driven.mmap(pages, flags=MAP_SHARED, fd=fd)
    return Workload(
        driven, [Expected(driven.pid, start, [P.PRESENT] * pages, "table", smaps=("Swap",))]
    )


@workload()
def bpf_map(tools: Tools) -> Workload:
    """The array of a BPF map, mapped."""
    driven = tools.target()
    pages = 3
    # BPF_MAP_CREATE: an array of one value, that may be mapped (BPF_F_MMAPABLE)
    attributes = struct.pack("<5I", 2, 4, pages * PAGE, 1, 1 << 10).ljust(128, b"\0")
    fd = driven.libc("syscall", 321, 0, attributes, len(attributes))
    start = driven.mmap(pages, flags=MAP_SHARED, fd=fd)
    return Workload(
        driven, [Expected(driven.pid, start, [P.PRESENT] * pages, "table", smaps=("Swap",))]
    )


@workload()
def aio_ring(tools: Tools) -> Workload:
    """The ring of asynchronous input and output: in the kernel's RAM, and not mapped yet."""
    driven = tools.target()
    context = driven.ask("libc", "syscall", 206, 8, bytes(8))[1][0]
    (start,) = struct.unpack("<Q", context)
    (vma,) = oracle.smaps_at(driven.pid, start, start + PAGE)
    pages = (vma.stop - vma.start) // PAGE
    return Workload(
        driven, [Expected(driven.pid, start, [P.UNKNOWN] * pages, "table", smaps=("Swap",))]
    )


@workload()
def perf_ring(tools: Tools) -> Workload:
    """The ring of a perf event: frames that the page table does not show."""
    driven = tools.target()
    attributes = struct.pack("<IIQ", 1, 128, 9).ljust(128, b"\0")  # software, dummy
    fd = driven.libc("syscall", 298, attributes, 0, -1, -1, 0)
    pages = 1 + 4
    start = driven.mmap(pages, flags=MAP_SHARED, fd=fd)
    driven.peek(start, range(pages))
    return Workload(driven, [Expected(driven.pid, start, [P.DEVICE] * pages, "pfn", smaps=())])


@workload()
def kernel_pages(tools: Tools) -> Workload:
    """[vvar], [vdso] and [vsyscall]."""
    driven = tools.target()
    mappings = []
    for vma in oracle.read_smaps(driven.pid):
        pages = (vma.stop - vma.start) // PAGE
        if vma.path == "[vdso]":
            driven.peek(vma.start, range(pages))
            classes = [P.PRESENT] * pages
            mappings.append(Expected(driven.pid, vma.start, classes, "table", smaps=()))
        elif vma.path.startswith("[vvar"):
            classes = [P.DEVICE] * pages
            mappings.append(Expected(driven.pid, vma.start, classes, "pfn", smaps=()))
        elif vma.path == "[vsyscall]":
            classes = [P.DEVICE] * pages
            mappings.append(Expected(driven.pid, vma.start, classes, "outside", smaps=()))
    return Workload(driven, mappings)


# A static i386 program: map 23 pages, write every second one, print the address, and wait.
# mov eax,192 (mmap2); ebx=0; ecx=length; edx=3; esi=0x22; edi=-1; ebp=0; int 0x80
_I386 = (
    b"\xb8\xc0\x00\x00\x00"
    b"\x31\xdb"
    b"\xb9" + struct.pack("<I", PRIME * PAGE) + b"\xba\x03\x00\x00\x00"
    b"\xbe\x22\x00\x00\x00"
    b"\xbf\xff\xff\xff\xff"
    b"\x31\xed"
    b"\xcd\x80"
    # mov esi,eax; mov ecx,12; loop: mov byte [eax],1; add eax,8192; dec ecx; jnz loop
    b"\x89\xc6"
    b"\xb9" + struct.pack("<I", (PRIME + 1) // 2) + b"\xc6\x00\x01"
    b"\x05\x00\x20\x00\x00"
    b"\x49"
    b"\x75\xf5"
    # push esi; mov eax,4 (write); ebx=1; ecx=esp; edx=4; int 0x80
    b"\x56"
    b"\xb8\x04\x00\x00\x00"
    b"\xbb\x01\x00\x00\x00"
    b"\x89\xe1"
    b"\xba\x04\x00\x00\x00"
    b"\xcd\x80"
    # wait: mov eax,29 (pause); int 0x80; jmp wait
    b"\xb8\x1d\x00\x00\x00"
    b"\xcd\x80"
    b"\xeb\xf7"
)


def i386_program() -> bytes:
    """Return a 32-bit ELF executable made of ``_I386`` alone."""
    base, header = 0x08048000, 52 + 32
    size = header + len(_I386)
    elf = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    elf += struct.pack("<2H5I6H", 2, 3, 1, base + header, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    elf += struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x1000)
    return elf + _I386


@workload()
def thirty_two_bits(tools: Tools) -> Workload:
    """A 32-bit process: its addresses end at 4 GiB."""
    program = tools.directory / "i386"
    program.write_bytes(i386_program())
    program.chmod(stat.S_IRWXU)
    driven = tools.target()
    end, theirs = os.pipe()
    child = driven.fork()
    # The pipe's writing end, as standard output of the 32-bit program.
    out = child.os("open", f"/proc/{os.getpid()}/fd/{theirs}", os.O_WRONLY)
    child.os("dup2", out, 1)
    os.close(theirs)
    child.channel.settimeout(20)
    send(child.channel, ("os", ("execv", str(program), [str(program)]), {}))
    where = os.read(end, 4)
    os.close(end)
    if len(where) != 4:
        raise StateMoved("the 32-bit program did not run")
    (start,) = struct.unpack("<I", where)

    def is_waiting() -> bool:
        with open(f"/proc/{child.pid}/syscall") as file:
            return file.read().startswith("29 ")

    wait_until(is_waiting, "the 32-bit program pauses")
    classes = [P.NONE if page % 2 else P.PRESENT for page in range(PRIME)]
    return Workload(driven, [Expected(child.pid, start, classes, "anonymous")])
