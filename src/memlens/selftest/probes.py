"""
What this kernel lets this user see, each interface proven on memory of our own.

Versions are never compared and configurations never read: a call that succeeds may
still do nothing, as writing 4 to clear_refs does on kernels without soft-dirty.  So
each probe makes memory whose state is known, asks, and compares.
"""

import os
from dataclasses import replace

from memlens.errors import MemlensError, Unsupported
from memlens.kernel.procfs import raise_errno
from memlens.kernel.syscalls import fstatfs_type
from memlens.scan.machine import Machine
from memlens.selftest.probe_ground import Ground, probed, read_capabilities, read_reader
from memlens.selftest.probe_rows import ProbeRow
from memlens.selftest.records import Probe, Reader

_PROC_MAGIC = 0x9FA0


def find_ground(machine: Machine) -> tuple[Ground, tuple[str, ...]]:
    """
    Return where probes are made, and what a reader of their answers must know.

    :raises Unsupported: if there is no /proc.
    """
    own, notes = _find_self(machine)
    reader = replace(read_reader(own), proc=machine.root)
    ground = Ground(machine, own, reader, read_capabilities(own))
    return ground, (*notes, *_notes_on(reader))


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
