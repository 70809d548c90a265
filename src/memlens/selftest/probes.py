"""
What this kernel lets this user see, each interface proven on memory of our own.

Versions are never compared and configurations never read: a call that succeeds may
still do nothing, as writing 4 to clear_refs does on kernels without soft-dirty.  So
each probe makes memory whose state is known, asks, and compares.
"""

import os
from dataclasses import dataclass

from memlens.errors import MemlensError, Unsupported
from memlens.kernel.procfs import raise_errno
from memlens.kernel.swaps import Swap, read_swap
from memlens.kernel.syscalls import fstatfs_type
from memlens.scan.machine import Machine
from memlens.selftest.probe_ground import Ground, Reader, probed, read_reader
from memlens.selftest.probe_rows import PROBE_TABLE, ProbeRow

_PROC_MAGIC = 0x9FA0


@dataclass(frozen=True, slots=True)
class Probe:
    """
    One interface of the kernel, and whether it is of use to this reader.

    :param name: of the interface; one of ``MEMLENS_DISABLE`` if it can be switched off.
    :param is_available: whether the round trip gave what it must.
    :param proof: what the round trip showed, "" if it failed.
    :param reason: why it is missing, "" if it is not.
    :param needs: the least privilege or kernel that would give it, "" if it is there.
    :param group: ``own``, ``other``, ``frames``, ``tracking`` or ``swap``.
    :param title: what it is, for a person.
    :param is_switched_off: missing only because MEMLENS_DISABLE names it.
    """

    name: str
    is_available: bool
    proof: str
    reason: str
    needs: str
    group: str
    title: str
    is_switched_off: bool = False


@dataclass(frozen=True, slots=True)
class Features:
    """
    What this kernel lets this reader see, at the time it was asked.

    :param kernel_release: as ``uname -r`` says.
    :param page_size_bytes: size of a base page.
    :param proc: root of the /proc that was asked.
    :param reader: user, capabilities and namespaces.
    :param probes: one for each interface.
    :param swap: the swap areas, empty if they cannot be read.
    :param notes: what else a reader of this must know.
    """

    kernel_release: str
    page_size_bytes: int
    proc: str
    reader: Reader
    probes: tuple[Probe, ...]
    swap: Swap
    notes: tuple[str, ...]

    def probe(self, name: str) -> Probe:
        """
        Return the probe of one interface.

        :raises KeyError: if there is none of that name.
        """
        for found in self.probes:
            if found.name == name:
                return found
        raise KeyError(name)

    def has(self, name: str) -> bool:
        """Return whether an interface is available; KeyError for an unknown name."""
        return self.probe(name).is_available

    def missing(self) -> tuple[Probe, ...]:
        """Return the interfaces that are not available."""
        return tuple(probe for probe in self.probes if not probe.is_available)


def probe_features(proc: str = "/proc") -> Features:
    """
    Return what this kernel lets this reader see.

    >>> features = probe_features()
    >>> features.has("pagemap"), features.probe("smaps").group
    (True, 'own')

    :param proc: root of the /proc to ask.
    :raises Unsupported: if there is no /proc.
    :raises ValueError: if MEMLENS_DISABLE is malformed.

    Takes some 60 ms, and makes short-lived child processes and mappings; nothing of
    another process is touched.  An answer about other users' processes stands for one of
    them: a security module may judge each differently.
    """
    machine = Machine(proc)
    own, notes = _find_self(machine)
    reader = read_reader(own)
    ground = Ground(machine, own, reader)
    probes = tuple(run_row(row, ground) for row in PROBE_TABLE)
    return Features(
        kernel_release=os.uname().release,
        page_size_bytes=machine.page_size_bytes,
        proc=machine.root,
        reader=reader,
        probes=probes,
        swap=_read_swap(machine),
        notes=(*notes, *_notes_on(reader)),
    )


def run_row(row: ProbeRow, ground: Ground) -> Probe:
    """
    Return what one round trip shows.

    A fault that is none of the kernel's, as a bug here, is raised.
    """
    switched_off = [
        name for name in (row.name, *row.stands_on) if name in ground.machine.disabled
    ]
    if switched_off:
        reason = f"MEMLENS_DISABLE switches {switched_off[0]} off"
        return Probe(row.name, False, "", reason, "", row.group, row.title, True)
    try:
        proof = probed(row.ask, ground)
    except Unsupported as error:
        reason, needs = error.message, row.kernel
    except MemlensError as error:
        # Refused, or nothing was there to try with, which more privilege may change.
        reason, needs = error.message, row.privilege
    else:
        return Probe(row.name, True, proof, "", "", row.group, row.title)
    return Probe(row.name, False, "", reason, needs, row.group, row.title)


def _find_self(machine: Machine) -> tuple[str, tuple[str, ...]]:
    """Return this process's directory, by way of the usual /proc if ``proc`` hides it."""
    _check_proc(machine)
    if os.path.isdir(f"{machine.root}/self/"):
        return f"{machine.root}/self", ()
    if os.path.isdir("/proc/self/"):
        note = f"{machine.root} does not show this process, so /proc was asked about its memory"
        return "/proc/self", (note,)
    raise Unsupported("does not show this process, nor does /proc", path=machine.root)


def _check_proc(machine: Machine) -> None:
    try:
        fd = os.open(machine.root, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Unsupported("there is no proc file system", path=machine.root) from error
    except OSError as error:
        raise_errno(error, "cannot open the proc file system", machine.root)
    try:
        if fstatfs_type(fd) != _PROC_MAGIC:
            raise Unsupported("not a proc file system", path=machine.root)
    finally:
        os.close(fd)


def _notes_on(reader: Reader) -> tuple[str, ...]:
    notes = []
    if reader.is_init_user_namespace is False:
        notes.append(
            "in a user namespace: for PFNs, map_files and BPF only capabilities in the first "
            "one count"
        )
    if reader.is_init_pid_namespace is False:
        notes.append("in a PID namespace: processes outside of it are not seen")
    if reader.is_filtered:
        notes.append("under a seccomp filter, which may refuse what the kernel could do")
    return tuple(notes)


def _read_swap(machine: Machine) -> Swap:
    try:
        return read_swap(machine)
    except MemlensError as error:
        return Swap(notes=(str(error),))
