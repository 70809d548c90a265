"""
Finding out what backs a mapping, and opening it without disturbing anybody.

/proc/PID/map_files, /proc/PID/fd, /proc/PID/mountinfo and /proc/locks
(Documentation/filesystems/proc.rst).  An object is first held with O_PATH, which
is no open for the file system: no driver runs, no lease breaks, inotify is silent.
"""

import errno
import os
import stat
from functools import lru_cache
from typing import NamedTuple

from memlens.errors import MemlensError
from memlens.kernel.maps import Mapping
from memlens.kernel.mounts import (
    BTRFS_MAGIC,
    KERNEL_MAGICS,
    KIND_BY_MAGIC,
    OVERLAYFS_MAGIC,
    may_hang,
    parse_mounts,
)
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Host, decode_bytes, encode_text, read_file
from memlens.kernel.syscalls import fstatfs_type
from memlens.objects.backing import Backing, open_quietly
from memlens.objects.leases import Leases

ZERO_DEVICE = os.makedev(1, 5)

# Names that the kernel gives to mappings of its own; [heap], [stack] and [anon:...] are not.
KERNEL_NAMES = frozenset(
    {"[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]", "[uprobes]", "[sigpage]", "[vectors]"}
)
# What maps prints for a newline, and how many are read in both ways.
_NEWLINE = "\\012"
_NEWLINES_READ = 3
_HUGE_SIZES = "/sys/kernel/mm/hugepages"


class ObjectFacts(NamedTuple):
    """
    What backs a mapping, before anything is opened.

    :param kind: ``anonymous``, ``shmem``, ``ramfs``, ``hugetlb``, ``overlay``, ``block``,
        ``file``, ``device`` (a character device), ``special`` (of the kernel).
    :param refusal: why the object cannot or must not be opened, "" if it can.
    """

    kind: str
    refusal: str = ""


class MountTable(NamedTuple):
    """
    The mounts of a process, by what /proc/PID/maps and fdinfo print.

    ``types``: file system type by device; ``devices``: device by mount ID.
    """

    types: dict[str, str]
    devices: dict[int, str]


class Opener:
    """
    Opens the objects of one process.

    :param process: whose mappings they are.
    :param known: what objects are that others opened within this scan, shared with them.

    ``has_map_files`` turns False when map_files refuses.
    """

    def __init__(
        self,
        process: ProcessDir,
        known: dict[tuple[str, int, str], ObjectFacts] | None = None,
    ) -> None:
        self.process = process
        self.meter = process.host.meter
        self.has_map_files = "map_files" not in process.host.disabled
        self._refusal = "map_files is switched off"
        self._mount_table: MountTable | None = None
        self._facts: dict[tuple[str, int, str], ObjectFacts] = {}
        self._known = self._facts if known is None else known
        self._fds: dict[tuple[int, int], str] | None = None
        self.leases = Leases(process.host)

    def facts(self, mapping: Mapping) -> ObjectFacts:
        """
        Return what backs a mapping.

        Asked once for each (device, inode, path); a mapping that vanished meanwhile
        is ``special`` and found changed when the mappings are read again.
        """
        if mapping.inode == 0 and mapping.device == "00:00":
            name = mapping.path.removesuffix(" (deleted)")
            # In-kernel files without an inode number, as old anon_inodes, start with a slash.
            return SPECIAL if name in KERNEL_NAMES or name.startswith("/") else ANONYMOUS
        key = (mapping.device, mapping.inode, mapping.path)
        known = self._known.get(key) or self._facts.get(key)
        if known is None:
            known = self._look(mapping)
            # What vanished may be another process's moment: the next look is a new one.
            if known.refusal not in (VANISHED, REPLACED):
                # Why it may not be opened depends on whose mapping it is.
                (self._facts if known.refusal else self._known)[key] = known
        return known

    def know(self, place: tuple[str, int, str], facts: ObjectFacts) -> None:
        """Take what an object is from who knows that by its device, inode and path."""
        self._facts[place] = facts

    def open(self, mapping: Mapping) -> Backing | str:
        """
        Open the object of a mapping; a text says why that cannot be.

        The caller closes it.  Ask ``facts`` first: what it refuses is never opened.
        """
        facts = self.facts(mapping)
        if facts.refusal:
            return facts.refusal
        handle = self.hold(mapping)
        if isinstance(handle, str):
            return handle
        try:
            return self._reopen(handle, facts.kind, mapping)
        finally:
            os.close(handle)

    def _look(self, mapping: Mapping) -> ObjectFacts:
        file_system = self._mounts().types.get(mapping.device, "")
        if may_hang(file_system):
            return ObjectFacts("file", f"{file_system} could hang the reader: not asked")
        handle = self.hold(mapping)
        if isinstance(handle, str):
            return ObjectFacts(_kind_by_name(mapping, file_system), handle)
        try:
            return _facts_of(handle, mapping)
        except OSError as error:
            return ObjectFacts("file", f"fstat: {os.strerror(error.errno or 0)}")
        finally:
            os.close(handle)

    def hold(self, mapping: Mapping) -> int | str:
        """Return an O_PATH descriptor of just this object, or why there is none."""
        reason = self._refusal
        if self.has_map_files:
            name = f"map_files/{mapping.name}"
            try:
                handle = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self.process.fd)
            except OSError as error:
                reason = _map_files_refusal(error)
                if error.errno == errno.ENOENT:
                    return VANISHED
                if error.errno in (errno.EPERM, errno.EACCES):
                    self.has_map_files = False
                    self._refusal = reason
            else:
                self.meter.used.add("map_files")
                return handle if self._is_same(handle, mapping) else _close(handle, REPLACED)
        for path in self._other_paths(mapping):
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            if self._is_same(handle, mapping):
                return handle
            os.close(handle)
        return reason

    def _other_paths(self, mapping: Mapping) -> list[bytes]:
        """Return other ways to the object: an open descriptor, its path."""
        base = self.process.path.encode()
        if self._fds is None:
            self._fds = self._list_fds()
        paths = []
        fd = self._fds.get((device_number(mapping.device), mapping.inode))
        if fd is not None:
            paths.append(base + b"/fd/" + fd.encode())
        if mapping.path.startswith("/"):
            # Which object one of these is, is looked at in any case.
            names = possible_paths(mapping.path)
            paths += [base + b"/root" + encode_text(name) for name in names]
        return paths

    def _list_fds(self) -> dict[tuple[int, int], str]:
        found: dict[tuple[int, int], str] = {}
        try:
            names = os.listdir(f"{self.process.path}/fd")
        except OSError:
            return found
        for name in names:
            try:
                status = os.stat(f"fd/{name}", dir_fd=self.process.fd)
            except OSError:
                continue
            found.setdefault((status.st_dev, status.st_ino), name)
        return found

    def _reopen(self, handle: int, kind: str, mapping: Mapping) -> Backing | str:
        status = os.fstat(handle)
        named = device_number(mapping.device), mapping.inode
        if self.leases.has(status) or self.leases.has_inode(*named):
            return "under a write lease, which opening would break"
        return reopen(handle, kind, self.process.host, mapping.path)

    def _is_same(self, handle: int, mapping: Mapping) -> bool:
        """Return whether a descriptor is the object of the line of maps."""
        status = os.fstat(handle)
        if status.st_ino == mapping.inode and status.st_dev == device_number(mapping.device):
            return True
        magic = fstatfs_type(handle)
        # Subvolumes of btrfs have devices of their own in stat, but not in maps.
        if magic == BTRFS_MAGIC:
            return status.st_ino == mapping.inode
        # With layers on several file systems, stat on an overlay gives those of the layer.
        return magic == OVERLAYFS_MAGIC and self._is_same_inode(handle, mapping)

    def _is_same_inode(self, handle: int, mapping: Mapping) -> bool:
        """Compare with what fdinfo says: the overlay's own inode, and its mount."""
        raw = read_file(f"/proc/self/fdinfo/{handle}")
        fields = dict(
            line.split(":", 1) for line in decode_bytes(raw).split("\n") if ":" in line
        )
        device = self._mounts().devices.get(int(fields.get("mnt_id", "-1")))
        return device == mapping.device and int(fields.get("ino", "-1")) == mapping.inode

    def _mounts(self) -> MountTable:
        if self._mount_table is None:
            try:
                self._mount_table = parse_mount_table(self.process.read("mountinfo"))
            except MemlensError:
                self._mount_table = MountTable({}, {})
        return self._mount_table


def possible_paths(path: str) -> list[str]:
    r"""
    Return the names that a mapped file may really have, going by what maps prints.

    >>> possible_paths("/d/a\\012b")
    ['/d/a\nb', '/d/a\\012b']

    A newline is printed as ``\012`` and a backslash as itself; `` (deleted)`` may belong to
    the name.  What is found by one of them must be proven to be what is mapped.  Of a
    name with many newlines not all readings are given: see ``has_all_paths``.
    """
    parts = path.split(_NEWLINE)
    if not has_all_paths(path):
        return ["\n".join(parts), path]
    names = parts[:1]
    for part in parts[1:]:
        names = [name + between + part for name in names for between in ("\n", _NEWLINE)]
    return names


def has_all_paths(path: str) -> bool:
    """Return whether ``possible_paths`` gives every name that a file may have."""
    return path.count(_NEWLINE) <= _NEWLINES_READ


def reopen(handle: int, kind: str, host: Host, path: str) -> Backing | str:
    """
    Open for reading what an O_PATH descriptor holds; a text says why that cannot be.

    :param handle: stays open; what it holds must be a regular file or a block device.
    :param kind: kind of the object, as ``ObjectFacts`` has it.
    :param path: its name, for errors.
    """
    status = os.fstat(handle)
    link = f"/proc/self/fd/{handle}"
    try:
        fd = open_quietly(link)
    except OSError as error:
        return f"cannot be opened: {os.strerror(error.errno or 0)}"
    is_writable = status.st_uid == os.geteuid() or os.access(link, os.W_OK)
    return Backing(fd, kind, host, is_writable, path)


def parse_mount_table(raw: bytes) -> MountTable:
    """
    Return the file system of each device and the device of each mount.

    >>> parse_mount_table(b"24 1 254:0 / / rw - ext4 /dev/vda rw")
    MountTable(types={'fe:00': 'ext4'}, devices={24: 'fe:00'})
    """
    table = MountTable({}, {})
    for mount in parse_mounts(raw):
        device = device_text(mount.device)
        table.types[device] = mount.kind
        table.devices[mount.mount_id] = device
    return table


def _facts_of(handle: int, mapping: Mapping) -> ObjectFacts:
    status = os.fstat(handle)
    if stat.S_ISCHR(status.st_mode):
        if status.st_rdev == ZERO_DEVICE and not mapping.is_shared:
            return ANONYMOUS
        return ObjectFacts("device", "a character device is never opened")
    if stat.S_ISBLK(status.st_mode):
        return ObjectFacts("block")
    magic = fstatfs_type(handle)
    if magic in KERNEL_MAGICS:
        return ObjectFacts("special", f"{KERNEL_MAGICS[magic]} memory cannot be opened")
    if not stat.S_ISREG(status.st_mode):
        return ObjectFacts("special", "not a regular file")
    return ObjectFacts(KIND_BY_MAGIC.get(magic, "file"))


@lru_cache(maxsize=256)
def device_number(device: str) -> int:
    """
    Return ``st_dev`` of a device as maps prints it.

    >>> os.major(device_number("fe:01")), os.minor(device_number("fe:01"))
    (254, 1)
    """
    major, _, minor = device.partition(":")
    return os.makedev(int(major, 16), int(minor, 16))


def device_text(number: int) -> str:
    """
    Return ``st_dev`` as maps prints it.

    >>> device_text(os.makedev(254, 1))
    'fe:01'
    """
    return f"{os.major(number):02x}:{os.minor(number):02x}"


def _close(handle: int, reason: str) -> str:
    os.close(handle)
    return reason


def _map_files_refusal(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "map_files needs CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"
    if error.errno == errno.ENXIO:
        return "this object cannot be opened"
    return f"map_files: {os.strerror(error.errno or 0)}"


def _kind_by_name(mapping: Mapping, file_system: str) -> str:
    """Return the kind of an object that cannot be held, from what the kernel prints."""
    if mapping.path.startswith("anon_inode:"):
        return "special"
    if file_system in ("tmpfs", "devtmpfs"):
        return "shmem"
    if file_system == "hugetlbfs":
        return "hugetlb"
    if file_system in ("ramfs", "overlay"):
        return file_system
    if not file_system:
        device = device_number(mapping.device)
        if device == internal_device():
            return "shmem"
        if device in internal_huge_devices():
            return "hugetlb"
    return "file"


def internal_device() -> int:
    """Return the device of the kernel's own tmpfs: memfds and shared memory."""
    fd = os.memfd_create("memlens", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


@lru_cache(maxsize=1)
def internal_huge_devices() -> frozenset[int]:
    """
    Return the devices of the kernel's own hugetlbfs mounts, one for each size of page.

    Memfds, System V segments and anonymous memory in huge pages are files there.  The empty
    files that are made here take no page.
    """
    found = set()
    for name in _list_huge_sizes():
        # "hugepages-2048kB"; memfd_create(2) takes the power of two.
        size_bytes = int(name.removeprefix("hugepages-").removesuffix("kB")) << 10
        flags = (
            os.MFD_CLOEXEC | os.MFD_HUGETLB | (size_bytes.bit_length() - 1) << os.MFD_HUGE_SHIFT
        )
        try:
            fd = os.memfd_create("memlens", flags)
        except OSError:
            continue
        found.add(os.fstat(fd).st_dev)
        os.close(fd)
    return frozenset(found)


def _list_huge_sizes() -> list[str]:
    try:
        return [name for name in os.listdir(_HUGE_SIZES) if name.startswith("hugepages-")]
    except OSError:
        return []


ANONYMOUS = ObjectFacts("anonymous")
SHMEM = ObjectFacts("shmem")
SPECIAL = ObjectFacts("special", "memory of the kernel")
VANISHED = "the mapping vanished"
REPLACED = "another object is mapped there now"
