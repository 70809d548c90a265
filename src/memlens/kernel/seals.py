"""Seals of memfds: fcntl(2), F_GET_SEALS."""

import fcntl

# F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE; the first
# alone, which every memfd made without MFD_ALLOW_SEALING has, keeps nobody from anything.
_SEALS = 0x1F & ~fcntl.F_SEAL_SEAL


def is_sealed(fd: int) -> bool:
    """Return whether anything that an open memfd could do is forbidden for good."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS)
    except OSError:
        # Files of a mounted tmpfs and disk files have none.
        return False
