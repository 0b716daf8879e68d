"""A cache with tiers over memory that holds tokens, for their tests. P = 4."""

import sys
from pathlib import Path

from ramify.radix_cache import invariants
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tiers import TierIndex

sys.path.insert(0, str(Path(__file__).parent.parent / "sim"))
from fake_tiers import FakeTiers

LONG = list(range(100, 112))  # three pages


class Rig:
    def __init__(self, n_slots=8, disk_pages=0, n_pages=8, known=(), least=1, **options):
        self.tiers = TierIndex(4, n_slots, disk_pages, known, least)
        self.cache = PrefixCache(n_pages, 4, tiers=self.tiers, **options)
        self.store = FakeTiers(n_pages, 4, n_slots)
        self.seen = []  # every move carried out

    def compute(self, tokens, namespace=""):
        """Lease, compute and publish `tokens`. Returns the lease."""
        key = as_tokens(tokens)
        lease = self.cache.acquire(namespace, key, len(tokens) - 1)
        assert self.cache.ensure(lease, len(tokens))
        self.move()
        assert self.store.read(lease.table, lease.n_cached) == tokens[: lease.n_cached]
        for i in range(lease.n_cached, len(tokens)):
            self.store.slots[lease.table[i // 4]][i % 4] = tokens[i]
        self.cache.commit(lease, key)
        return lease

    def run(self, tokens, namespace=""):
        """One request from beginning to end. Returns its lease."""
        lease = self.compute(tokens, namespace)
        self.cache.release(lease)
        self.move()
        assert invariants.check(self.cache) == []
        return lease

    def push_out(self):
        """Fill the device with something else, so that all that was there is evicted."""
        n = 4 * self.cache.pages.n_pages
        lease = self.cache.acquire("filler", as_tokens([7]), 0)
        assert self.cache.ensure(lease, n)
        self.cache.release(lease)
        self.move()

    def move(self):
        moves = self.cache.take_moves()
        self.store.carry_out(moves)
        self.seen += moves
        return moves

    def end_files(self, ok=True):
        """Let every read and write end, and what they lead to."""
        self.move()
        while self.store.open:
            self.cache.file_done(self.store.end(0, ok))
            self.move()
        assert invariants.check(self.cache) == []

    def hit(self, tokens, namespace=""):
        return self.cache.hit_lengths(namespace, as_tokens(tokens), len(tokens))[1]

    def count(self, kind):
        return sum(isinstance(move, kind) for move in self.seen)
