"""
Whether a file on overlayfs may have been copied up since it was mapped.

Documentation/filesystems/overlayfs.rst.  A mapping made before the copy keeps the
pages of the lower file, while everything opened afterwards answers for the upper.
"""

import errno
import os
from dataclasses import dataclass

from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.mounts import OVERLAYFS_MAGIC, TMPFS_MAGIC, Mount, parse_mounts
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import encode_text, unescape_path
from memlens.kernel.syscalls import fstatfs_type
from memlens.objects.opener import device_number, has_all_paths, possible_paths

# What a copy-up leaves on the copy.  Mounts of ordinary users have it where they may write:
# option userxattr (commit 2d2f2d7322ff ("ovl: user xattr") (in v5.11)), which some kernels
# do not list among the options (commit 321b46b90481 adds it).
_TRUSTED_ORIGIN = "trusted.overlay.origin"
_USER_ORIGIN = "user.overlay.origin"


@dataclass(frozen=True, slots=True)
class Overlay:
    """
    An overlay.

    :param mount_point: where it is mounted.
    :param upper: its upper directory, "" if it is read-only.
    :param lower: its lower directories.
    :param is_by_user: whether its attributes are those that any user may set and see.
    """

    mount_point: str
    upper: str
    lower: tuple[str, ...]
    is_by_user: bool = False


def is_maybe_copied_up(process: ProcessDir, mapping: Mapping) -> bool:
    """
    Return whether a copy of the file was made, before or after it was mapped.

    True also where it cannot be found out: the upper directory is not in reach.
    """
    overlay = _overlay_of(process, mapping)
    if overlay is None:
        return True
    if not overlay.upper:
        return False
    prefix = overlay.mount_point.rstrip("/") + "/"
    # A deleted file's path may by now be that of another one.
    paths = possible_paths(mapping.path)
    is_named = paths[0].startswith(prefix) and has_all_paths(mapping.path)
    if not is_named or paths[0].endswith(" (deleted)"):
        return True
    upper = _reach(process, overlay.upper)
    if upper is None:
        return True
    names = [os.path.join(upper, encode_text(path[len(prefix) :])) for path in paths]
    return any(_is_copy(name, overlay.is_by_user) for name in names)


def is_maybe_on_swap(process: ProcessDir, mapping: Mapping) -> bool:
    """Return whether a layer of the overlay is on tmpfs, or cannot be looked at."""
    overlay = _overlay_of(process, mapping)
    if overlay is None:
        return True
    layers = [*filter(None, [overlay.upper]), *overlay.lower]
    reached = [_reach(process, layer) for layer in layers]
    return any(path is None or _is_maybe_tmpfs(path) for path in reached)


def parse_overlays(raw: bytes) -> dict[int, Overlay]:
    """
    Return the overlays of a mountinfo file, by device as ``st_dev``.

    >>> line = b"9 1 0:42 / /m rw - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w"
    >>> found = parse_overlays(line)[os.makedev(0, 42)]
    >>> found.mount_point, found.upper, found.lower
    ('/m', '/u', ('/l',))
    """
    return {
        mount.device: _overlay(mount)
        for mount in parse_mounts(raw)
        if mount.kind == "overlay" and mount.root == "/"
    }


def layer_mounts(overlay: Mount, mounts: list[Mount]) -> list[Mount]:
    """
    Return the mounts that the layers of an overlay are on, going by their names alone.

    >>> line = b"9 1 0:42 / /m rw - overlay o rw,lowerdir=/l,upperdir=/t/u,workdir=/t/w"
    >>> tmpfs = b"8 1 0:41 / /t rw - tmpfs t rw"
    >>> found = parse_mounts(tmpfs + b"\\n" + line)
    >>> [mount.mount_point for mount in layer_mounts(found[1], found)]
    ['/t']

    :param mounts: those of a namespace whose names the layers may have, in its order.
    """
    layers = _overlay(overlay)
    found = {}
    for layer in [*filter(None, [layers.upper]), *layers.lower]:
        above = [m for m in mounts if f"{layer}/".startswith(m.mount_point.rstrip("/") + "/")]
        if above:
            # Of two at one place the last is seen.
            nearest = max(range(len(above)), key=lambda i: (len(above[i].mount_point), i))
            found[above[nearest].mount_id] = above[nearest]
    return list(found.values())


def _overlay(mount: Mount) -> Overlay:
    options = mount.options.split(",")
    upper = next((o[9:] for o in options if o.startswith("upperdir=")), "")
    lower = next((o[9:] for o in options if o.startswith("lowerdir=")), "")
    lowers = [o[10:] for o in options if o.startswith("lowerdir+=")]
    return Overlay(
        mount_point=mount.mount_point,
        upper=unescape_path(upper),
        lower=tuple(unescape_path(part) for part in [*lower.split(":"), *lowers] if part),
        is_by_user="userxattr" in options,
    )


def _overlay_of(process: ProcessDir, mapping: Mapping) -> Overlay | None:
    try:
        return parse_overlays(process.read("mountinfo")).get(device_number(mapping.device))
    except MemlensError:
        return None


def _reach(process: ProcessDir, path: str) -> bytes | None:
    """
    Return a way to a directory that the mount's options name, None if there is none.

    They name it as whoever mounted it saw it: mostly as we do, else as the process does.
    """
    if not path.startswith("/"):
        return None  # Relative to where that one was.
    ways = (encode_text(path), encode_text(f"{process.path}/root{path}"))
    found = [way for way in ways if os.path.isdir(way)]
    # Two directories by one name: which of them is meant, nothing tells.
    is_one = len(found) == 1 or (found and os.path.samefile(*found))
    return found[0] if is_one else None


def _is_maybe_tmpfs(path: bytes) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        # A layer that is an overlay itself has layers of its own.
        return fstatfs_type(fd) in (TMPFS_MAGIC, OVERLAYFS_MAGIC)
    finally:
        os.close(fd)


def _is_copy(path: bytes, is_by_user: bool) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    names = (_USER_ORIGIN,) if is_by_user else (_TRUSTED_ORIGIN, _USER_ORIGIN)
    if any(_is_maybe_there(path, name) for name in names):
        return True
    # No origin: made here, so that no lower file was ever mapped through it.  Trusted
    # attributes seem to be missing to who lacks CAP_SYS_ADMIN, as PFNs do.
    return not (is_by_user or features.is_pfn_visible())


def _is_maybe_there(path: bytes, name: str) -> bool:
    try:
        os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        return error.errno != errno.ENODATA
    return True
