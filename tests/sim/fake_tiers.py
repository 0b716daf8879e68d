"""Memory, host memory and files that hold tokens: carries out moves, and asserts that it can.

Reads and writes of files end when the test says so. A slot whose file is being read or written must
not be touched in the meantime: it holds nothing readable while it is read.
"""

from ramify.radix_cache.plans import (
    FileDone,
    FileDrop,
    FileRead,
    FileWrite,
    PageCopy,
    PageLoad,
    PageStore,
)


class FakeTiers:
    """`slots[page]` are the tokens of a page of the device, `host[slot]` of host memory."""

    def __init__(self, n_pages, page_size, n_slots=0):
        self.page_size = page_size
        self.slots = [[None] * page_size for _ in range(n_pages)]
        self.host = [[None] * page_size for _ in range(n_slots)]
        self.files = {}  # by key: tokens
        self.records = {}  # of the files, oldest first
        self.open = []  # reads and writes that have not ended

    def carry_out(self, moves):
        for move in moves:
            if isinstance(move, PageCopy):
                n = move.n_slots
                self.slots[move.target][:n] = self.slots[move.source][:n]
            elif isinstance(move, PageStore):
                assert not self.busy(move.slot), "a slot in use is overwritten"
                self.host[move.slot] = list(self.slots[move.page])
            elif isinstance(move, PageLoad):
                assert not any(m.slot == move.slot for m in self.open if isinstance(m, FileRead))
                self.slots[move.page] = list(self.host[move.slot])
            elif isinstance(move, FileDrop):
                reads = [m.record.key for m in self.open if isinstance(m, FileRead)]
                assert move.key not in reads, "a file is removed while it is read"
                self.files.pop(move.key, None)
                self.records.pop(move.key, None)
            else:
                assert not self.busy(move.slot), "a slot in use is read or written again"
                assert isinstance(move, FileWrite) or move.record.key in self.files
                if isinstance(move, FileRead):
                    self.host[move.slot] = [None] * self.page_size
                self.open.append(move)

    def forget_memory(self):
        """As when the process ends."""
        for page in [*self.slots, *self.host]:
            page[:] = [None] * self.page_size

    def busy(self, slot):
        return any(move.slot == slot for move in self.open)

    def end(self, i, ok=True):
        """End the i-th open read or write."""
        move = self.open.pop(i)
        key = move.record.key
        if isinstance(move, FileWrite):
            if ok:
                self.files[key] = list(self.host[move.slot])
                self.records.pop(key, None)
                self.records[key] = move.record
        elif key not in self.files:
            ok = False
        elif ok:
            self.host[move.slot] = list(self.files[key])
        return FileDone(move, ok)

    def read(self, pages, n):
        """The first n tokens of a sequence, through its page table."""
        size = self.page_size
        return [self.slots[pages[i // size]][i % size] for i in range(n)]
