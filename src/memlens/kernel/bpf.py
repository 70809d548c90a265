"""
bpf(2): load the programs that memlens ships, run them, and read their maps.

A program comes as a light skeleton: a loader program and its data, built by
``bpf/build.py``.  The kernel runs the loader, which fits the programs to the
kernel's own structures (CO-RE) and loads them.  Documentation/bpf/, and
tools/lib/bpf/skel_internal.h of the kernel for what the loader is handed.
"""

import ctypes
import errno
import mmap
import os
import platform
import struct
from typing import Any, NoReturn

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel.procfs import read_file
from memlens.kernel.syscalls import libc

# Of the two, both little-endian, as the blobs are.
_NR_BPF = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE = 0
_MAP_UPDATE_ELEM = 2
_PROG_LOAD = 5
_PROG_TEST_RUN = 10
_LINK_CREATE = 28
_ITER_CREATE = 33
_MAP_TYPE_ARRAY = 2
_PROG_TYPE_SYSCALL = 31
_F_SLEEPABLE = 1 << 4
_TRACE_ITER = 28
_CAP_SYS_ADMIN = 1 << 21
_CAP_PERFMON_AND_BPF = 1 << 38 | 1 << 39
NEEDS = "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, in the initial user namespace"
BTF_PATH = "/sys/kernel/btf/vmlinux"
LOCKDOWN_PATH = "/sys/kernel/security/lockdown"


class _Attr(ctypes.Structure):
    """A member of union bpf_attr (include/uapi/linux/bpf.h)."""


class _MapCreate(_Attr):
    _fields_ = [
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * 16),
    ]


class _MapUpdate(_Attr):
    _fields_ = [
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]


class _ProgLoad(_Attr):
    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("unused", ctypes.c_uint32 * 14),
        ("fd_array", ctypes.c_uint64),
    ]


class _TestRun(_Attr):
    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_int32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    ]


class _LinkCreate(_Attr):
    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_uint64),
        ("iter_info_len", ctypes.c_uint32),
    ]


class _IterTask(ctypes.Structure):
    """Member ``task`` of union bpf_iter_link_info."""

    _fields_ = [
        ("tid", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("pid_fd", ctypes.c_uint32),
    ]


class _IterCreate(_Attr):
    _fields_ = [("link_fd", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


def raise_if_unusable(btf_path: str = BTF_PATH, lockdown_path: str = LOCKDOWN_PATH) -> None:
    """
    Raise the reason why this process cannot use BPF here, if one is plain to see.

    Takes no privilege, and microseconds.

    :raises Unsupported: on an architecture without blobs, or a kernel without BTF.
    :raises AccessDenied: under lockdown, or without the capabilities.
    """
    machine = platform.machine()
    if machine not in _NR_BPF:
        raise Unsupported(f"no BPF program is built for {machine}")
    if not os.path.exists(btf_path):
        raise Unsupported("this kernel does not describe its structures", path=btf_path)
    if _is_locked_down(lockdown_path):
        raise AccessDenied(
            "the kernel is locked down",
            path=lockdown_path,
            needs="lockdown below confidentiality",
        )
    capabilities = _effective_capabilities()
    has_both = capabilities & _CAP_PERFMON_AND_BPF == _CAP_PERFMON_AND_BPF
    if not has_both and not capabilities & _CAP_SYS_ADMIN:
        raise AccessDenied("loading BPF programs is not permitted", needs=NEEDS)


def _effective_capabilities() -> int:
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


def _is_locked_down(path: str) -> bool:
    try:
        with open(path, "rb") as lockdown:
            return b"[confidentiality]" in lockdown.read()
    except OSError:
        return False


class Skeleton:
    """
    One of the shipped objects, loaded; it holds a file descriptor per map and program.

    :param name: of the blobs: ``cachewalk`` or ``swapareas``.
    :raises AccessDenied: if the kernel does not let this process load programs.
    :raises Unsupported: if the kernel cannot load or run this one.
    """

    def __init__(self, name: str) -> None:
        # Imported here: most scans need no program.
        import json

        # Not importlib.resources: it takes as long as loading the program.
        blob = os.path.join(os.path.dirname(__file__), "bpf_blobs", name)
        record = json.loads(read_file(f"{blob}.json"))
        data, insns = read_file(f"{blob}.data"), read_file(f"{blob}.insns")
        try:
            fds = _run_loader(data, insns, len(record["maps"]), len(record["programs"]))
        except OSError as error:
            _raise_load_error(error, name)
        self.maps = dict(zip(record["maps"], fds, strict=False))
        self.programs = dict(zip(record["programs"], fds[len(self.maps) :], strict=True))

    def close(self) -> None:
        """Close every file descriptor; the kernel frees what nobody else holds."""
        fds = [*self.maps.values(), *self.programs.values()]
        self.maps, self.programs = {}, {}
        for fd in fds:
            os.close(fd)

    def mmap_array(self, name: str, size_bytes: int, is_writable: bool = False) -> mmap.mmap:
        """Map an array of ``size_bytes`` into this process."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0)
        return mmap.mmap(self.maps[name], size_bytes, mmap.MAP_SHARED, protection)

    def run(self, program: str) -> None:
        """Run a program here and now, in the context of the calling thread."""
        _bpf(_PROG_TEST_RUN, _TestRun(prog_fd=self.programs[program]))

    def iterate_task(self, program: str, tid: int) -> None:
        """Run an iterator program over everything of one task, by its thread id."""
        task = _IterTask(tid=tid)
        attr = _LinkCreate(
            prog_fd=self.programs[program],
            attach_type=_TRACE_ITER,
            iter_info=ctypes.addressof(task),
            iter_info_len=ctypes.sizeof(task),
        )
        link = _bpf(_LINK_CREATE, attr)
        try:
            iterator = _bpf(_ITER_CREATE, _IterCreate(link_fd=link))
        finally:
            os.close(link)
        try:
            while os.read(iterator, 4096):
                pass
        finally:
            os.close(iterator)


def _raise_load_error(error: OSError, name: str) -> NoReturn:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.EPERM, errno.EACCES):
        raise AccessDenied(f"cannot load {name}: {reason}", needs=NEEDS) from error
    if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        raise MemlensError(f"cannot load {name}: {reason}") from error
    raise Unsupported(f"this kernel cannot load {name}: {reason}") from error


def _run_loader(data: bytes, insns: bytes, maps: int, programs: int) -> list[int]:
    """Return the file descriptors that the loader program made."""
    key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(data, len(data))
    attr = _MapCreate(
        map_type=_MAP_TYPE_ARRAY,
        key_size=4,
        value_size=len(data),
        max_entries=1,
        map_name=b"memlens_loader",
    )
    data_map = _bpf(_MAP_CREATE, attr)
    try:
        addresses = ctypes.addressof(key), ctypes.addressof(value)
        _bpf(_MAP_UPDATE_ELEM, _MapUpdate(data_map, *addresses, 0))
        loader = _load_loader(insns, data_map)
        try:
            return _call_loader(loader, maps, programs)
        finally:
            os.close(loader)
    finally:
        os.close(data_map)


def _load_loader(insns: bytes, data_map: int) -> int:
    code = ctypes.create_string_buffer(insns, len(insns))
    license_text = ctypes.create_string_buffer(b"Dual BSD/GPL")
    fd_array = ctypes.c_int(data_map)
    attr = _ProgLoad(
        prog_type=_PROG_TYPE_SYSCALL,
        insn_cnt=len(insns) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(license_text),
        prog_flags=_F_SLEEPABLE,
        prog_name=b"memlens_loader",
        fd_array=ctypes.addressof(fd_array),
    )
    return _bpf(_PROG_LOAD, attr)


# struct bpf_loader_ctx, then struct bpf_map_desc for each map, then an fd for each program.
_CONTEXT = struct.Struct("=IIIIQ")
_MAP_DESC = struct.Struct("=iIQ")
_PROG_DESC = struct.Struct("=i")


def _call_loader(loader: int, maps: int, programs: int) -> list[int]:
    size = _CONTEXT.size + maps * _MAP_DESC.size + programs * _PROG_DESC.size
    context = ctypes.create_string_buffer(_CONTEXT.pack(size, 0, 0, 0, 0), size)
    attr = _TestRun(prog_fd=loader, ctx_size_in=size, ctx_in=ctypes.addressof(context))
    _bpf(_PROG_TEST_RUN, attr)
    if attr.retval < 0:  # the loader closes what it had made
        raise OSError(-attr.retval, os.strerror(-attr.retval))
    map_at = _CONTEXT.size
    program_at = map_at + maps * _MAP_DESC.size
    return [
        *(_MAP_DESC.unpack_from(context, map_at + i * _MAP_DESC.size)[0] for i in range(maps)),
        *(
            _PROG_DESC.unpack_from(context, program_at + i * _PROG_DESC.size)[0]
            for i in range(programs)
        ),
    ]


def _bpf(command: int, attr: Any) -> int:
    number = _NR_BPF[platform.machine()]
    result = libc.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf({command}): {os.strerror(code)}")
    return int(result)
