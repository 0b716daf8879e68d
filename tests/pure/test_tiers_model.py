"""Device, host memory and disk against a plain model: random days over two tokens.

Whatever is found must hold the tokens that it was computed for, and what is found must be all that
the tiers hold: the model looks for it page by page in plain lists, without index, order or digest.
"""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from ramify.radix_cache import invariants
from ramify.radix_cache.eviction import POLICIES
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.page_keys import PageKeys, page_key, root_key
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tiers import TierIndex

sys.path.insert(0, str(Path(__file__).parent.parent / "sim"))
from fake_tiers import FakeTiers

DAYS, STEPS = 160, 1000


class World:
    """One seeded day: requests come, compute, fetch and leave; files end late and may fail."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.page = rng.choice([1, 2, 3])  # so few siblings that every one is looked at
        self.n_pages = rng.randint(5, 12)
        self.n_slots = rng.choice([0, 1, 2, 5, 12, 40])
        self.disk_pages = rng.choice([0, 4, 60, 60])
        self.least = rng.choice([1, 2, 5])
        self.policy = POLICIES[rng.choice(list(POLICIES))]
        self.store = FakeTiers(self.n_pages, self.page, self.n_slots)
        self.counts = Counter()
        self.wanted = [(name, [0, 1]) for name in ("", "b") for _ in range(5)]
        self.start([])

    def start(self, known):
        tiers = TierIndex(self.page, self.n_slots, self.disk_pages, known, self.least)
        self.cache = PrefixCache(
            self.n_pages, self.page, policy=self.policy, pin_share=0.3, tiers=tiers
        )
        self.jobs = []  # [namespace, tokens, lease, computed]
        self.fetches = []  # [fetch, namespace, tokens]
        self.now = 0.0

    def step(self):
        weights = {"arrive": 8, "compute": 6, "leave": 5, "fetch": 4, "end_fetch": 3, "file": 9}
        weights |= {"move": 6, "pin": 1, "flush": 0.1, "restart": 0.1, "back_up": 0.3}
        act = self.rng.choices(list(weights), weights.values())[0]
        getattr(self, act)()
        assert invariants.check(self.cache) == []

    def sequence(self):
        rng = self.rng
        namespace, tokens = rng.choice(self.wanted)
        if rng.random() < 0.2:
            tokens = [rng.randint(0, 1) for _ in range(rng.randint(1, 12))]
            self.wanted[rng.randrange(len(self.wanted))] = namespace, tokens
        return namespace, tokens[: rng.randint(len(tokens) // 2, len(tokens)) or 1]

    def known(self, namespace, tokens, limit):
        """(tokens on the device, with what host memory goes on): from plain lists."""
        key = as_tokens(tokens)
        on_device = n = self.cache.tree.match(namespace, key, limit)[1]
        pages = [p for p in self.cache.tiers.pages.by_key.values() if p.ready]
        k = n // self.page
        while True:
            parent = PageKeys(namespace, self.page).parent(key, k)
            rest = tokens[k * self.page : limit]
            held = [list(as_tokens(p.record.tokens)) for p in pages if p.record.parent == parent]
            longest = max((common(rest, h) for h in held), default=0)
            n = max(n, k * self.page + longest)
            k += 1
            if longest < self.page:
                return on_device, n

    # --- what happens ----------------------------------------------------------------------------

    def arrive(self, namespace=None, tokens=None):
        if len(self.jobs) > 2:
            return
        if tokens is None:
            namespace, tokens = self.sequence()
        limit = self.rng.randint(0, len(tokens))
        key = as_tokens(tokens)
        known = self.known(namespace, tokens, limit)
        assert self.cache.hit_lengths(namespace, key, limit) == known
        keys = self.cache.page_keys(namespace) if self.rng.random() < 0.5 else None
        room = self.cache.pages.n_available
        lease = self.cache.acquire(namespace, key, limit, keys=keys)
        if room >= self.n_pages:
            assert lease.n_cached == known[1]
        loaded = lease.host_tokens + lease.disk_tokens
        if lease.loads:
            assert lease.n_cached == known[0] + loaded
            self.counts["loads"] += 1
            self.counts["host"] += lease.host_tokens
            self.counts["disk"] += lease.disk_tokens
        else:
            assert loaded == 0
        if lease.n_cached < limit:
            self.counts[self.cache.miss_reason(namespace, key, lease.n_cached, limit)] += 1
        if self.rng.random() < 0.1 or not self.cache.ensure(lease, len(tokens)):
            self.cache.release(lease)
            return
        self.jobs.append([namespace, tokens, lease, lease.n_cached])
        if self.rng.random() < 0.7:
            self.move()

    def move(self):
        self.store.carry_out(self.cache.take_moves())
        for _, tokens, lease, computed in self.jobs:
            assert self.store.read(lease.table, computed) == tokens[:computed]

    def compute(self):
        if not self.jobs:
            return
        self.move()
        job = self.rng.choice(self.jobs)
        _, tokens, lease, computed = job
        end = self.rng.randint(computed, len(tokens))
        for i in range(computed, end):
            self.store.slots[lease.table[i // self.page]][i % self.page] = tokens[i]
        job[3] = end
        self.cache.commit(lease, as_tokens(tokens[:end]))

    def leave(self):
        if self.jobs:
            job = self.jobs.pop(self.rng.randrange(len(self.jobs)))
            if self.rng.random() < 0.8:
                self.cache.commit(job[2], as_tokens(job[1][: job[3]]))
            self.cache.release(job[2])

    def fetch(self):
        namespace, tokens = self.sequence()
        key = as_tokens(tokens)
        fetch = self.cache.fetch(namespace, key, len(tokens))
        if fetch is not None:
            assert fetch.pending
            self.fetches.append([fetch, namespace, tokens])
            self.counts["fetches"] += 1

    def end_fetch(self):
        if self.fetches:
            fetch, namespace, tokens = self.fetches.pop(self.rng.randrange(len(self.fetches)))
            if not fetch.pending and all(page.ready for page in fetch.pages):
                n = self.known(namespace, tokens, len(tokens))[1]
                first = self.cache.tree.match(namespace, as_tokens(tokens), len(tokens))[1]
                self.counts["fetched"] += n > first
                self.arrive(namespace, tokens)
            self.cache.end_fetch(fetch)

    def file(self):
        self.move()
        if self.store.open:
            failed = self.rng.random() < 0.1
            done = self.store.end(self.rng.randrange(len(self.store.open)), not failed)
            self.counts["failed"] += failed
            self.cache.file_done(done)

    def pin(self):
        namespace, tokens = self.sequence()
        self.cache.pin(namespace, as_tokens(tokens), self.now, 5.0)
        self.now += 2.0
        self.cache.expire_pins(self.now)

    def flush(self):
        assert self.cache.flush() == (not self.jobs and not self.fetches)

    def back_up(self):
        left = self.cache.back_up_all(self.rng.randint(1, 9))
        assert 0 <= left <= max(self.disk_pages, 0)

    def restart(self):
        """The process ends; what is on disk is found again."""
        self.move()
        while self.store.open:
            self.store.end(0, self.rng.random() < 0.5)
        records = list(self.store.records.values())
        self.store.host = [[None] * self.page for _ in self.store.host]
        self.start(records)


def common(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


@pytest.mark.parametrize("block", range(4))
def test_what_is_found_is_right_and_all_there_is(block):
    counts = Counter()
    for seed in range(block, DAYS, 4):
        world = World(seed)
        try:
            for _ in range(STEPS):
                world.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        counts += world.counts
        counts["losses"] += world.cache.tiers.losses
    for what in ("host", "disk", "failed", "fetched", "losses", "below threshold", "evicted"):
        assert counts[what] > 10, (what, counts)


def test_root_keys_are_those_of_no_page():
    """A namespace is any text: none may stand for a prefix of another."""
    assert root_key("abcd") != page_key(b"", b"abcd")
