"""Which memory cgroup an object is charged to, by one frame of it."""

from dataclasses import dataclass, field

from memlens.account.facts import ObjectKey
from memlens.errors import MemlensError
from memlens.kernel.kpage import KpageFile
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import Pagemap
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.runs import Runs

_PRESENT, _PFN = int(PM_PRESENT), int(PM_PFN)


@dataclass(slots=True)
class Charges:
    """
    The cgroups of objects, each asked of one page that is mapped.

    :param file: an open kpagecgroup.
    :param inodes: of the cgroup's directory, by object.

    Pages of one object may be charged to several cgroups: each to that of the process which
    wrote it first.
    """

    file: KpageFile
    inodes: dict[ObjectKey, int] = field(default_factory=dict)

    def learn(self, key: ObjectKey, pagemap: Pagemap, mapping: Mapping, present: Runs) -> None:
        """
        Ask about the first page that is mapped, unless the object is known.

        :param present: pages of the object that the mapping maps.
        """
        if key in self.inodes or not len(present):
            return
        size = pagemap.page_size_bytes
        page = (mapping.start - mapping.offset_bytes) // size + int(present.first[0])
        try:
            before = pagemap.read_words(page, 1)
            if not len(before) or not int(before[0]) & _PRESENT:
                return
            charged = self.file.read_range(int(before[0]) & _PFN, 1)
            # The frame may have changed hands meanwhile.
            after = pagemap.read_words(page, 1)
        except MemlensError:
            return
        if len(after) and len(charged) and int(after[0]) == int(before[0]):
            self.inodes[key] = int(charged[0])
