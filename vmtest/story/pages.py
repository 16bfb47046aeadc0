"""Says what pages were to the kernel that crashed: pages.py VMLINUX DUMP RUN...

A RUN is the first page frame number and the one after the last, as FIRST-END.
Prints a line "PFN CLASS" for each page: free, zero, user, cache, poisoned,
offline, or kernel, which is everything else and what a dump is for.
"""

import sys

import drgn
from drgn.helpers.linux.mm import compound_head, page_to_pfn, pfn_to_page

vmlinux, dump = sys.argv[1:3]
prog = drgn.Program()
prog.set_core_dump(dump)
prog.load_debug_info([vmlinux])

flags = {e.name: e.value for e in prog.type("enum pageflags").enumerators}
try:
    types = {e.name: e.value for e in prog.type("enum pagetype").enumerators}
except LookupError:
    types = {}
PAGE_SIZE = prog["PAGE_SIZE"].value_()


def flag(page, name):
    return name in flags and page.flags >> flags[name] & 1


class Page:
    """The parts of a struct page that classes depend on."""

    def __init__(self, pfn):
        self.page = pfn_to_page(prog, pfn)
        f = self.page.flags
        # A structure with one member since Linux 6.18.
        self.flags = (f.f if f.type_.unaliased_kind() == drgn.TypeKind.STRUCT else f).value_()
        self.type = self.page.page_type.value_() & 0xFFFFFFFF
        self.mapping = self.page.mapping.value_()

    def is_type(self, name, old):
        if "PGTY_" + name in types:
            # The type is the upper byte (Linux 6.12 and later).
            return self.type >> 24 == types["PGTY_" + name]
        if not old or self.type & 0xF0000000 != 0xF0000000 or self.type == 0xFFFFFFFF:
            return False
        return not self.type & old  # bits are cleared (up to Linux 6.11)

    def typed(self):
        if types:
            return self.type >> 24 >= 0xF0 and self.type != 0xFFFFFFFF
        return self.type & 0xF0000000 == 0xF0000000 and self.type & 0xFFFF0000 != 0xFFFF0000


def head_of(pfn):
    page = pfn_to_page(prog, pfn)
    return page_to_pfn(compound_head(page)).value_()


def in_buddy(pfn):
    for order in range(16):
        head = pfn & ~((1 << order) - 1)
        try:
            p = Page(head)
            if p.is_type("buddy", 0x80) and p.page.private.value_() >= order:
                return True
        except drgn.FaultError:
            return False
    return False


def classify(pfn):
    if in_buddy(pfn):
        return "free"
    if prog.read(pfn * PAGE_SIZE, PAGE_SIZE, physical=True).count(0) == PAGE_SIZE:
        return "zero"
    if flag(Page(pfn), "PG_hwpoison"):
        return "poisoned"
    head = Page(head_of(pfn))
    if head.is_type("offline", 0x100):
        return "offline"
    if head.is_type("hugetlb", 0x0):
        return "user"
    if head.typed() or flag(head, "PG_slab") or flag(head, "PG_reserved"):
        return "kernel"
    if head.mapping & 3 in (1, 3):
        return "user"
    if head.mapping and flag(head, "PG_lru"):
        return "cache"
    return "kernel"


for run in sys.argv[3:]:
    first, end = map(int, run.split("-"))
    for pfn in range(first, end):
        print(pfn, classify(pfn))
