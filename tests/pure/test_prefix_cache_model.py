"""The prefix cache against a dictionary model, over two tokens so that everything collides.

Once under each eviction policy.

A fake pool remembers which token each slot was computed for, so a wrong page table, a missing
copy-on-write or a page given to two writers shows as a wrong token, not as a plausible number.
"""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ramify.radix_cache import invariants
from ramify.radix_cache.eviction import POLICIES
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import Lease, PrefixCache

PAGE = 4
N_PAGES = 10  # few, so that evictions, refusals and yielding pins are common

namespaces = st.sampled_from(["", "b"])


@dataclass(eq=False)
class Job:
    """A request as the model sees it: its tokens, how many are computed, and its lease."""

    namespace: str
    tokens: list[int]
    lease: Lease
    computed: int


class PrefixCacheModel(RuleBasedStateMachine):
    """Random acquire, compute, commit, detach, release, flush, pin, unpin, and time."""

    policy = "lru"
    jobs = Bundle("jobs")

    def __init__(self):
        super().__init__()
        self.cache = PrefixCache(N_PAGES, PAGE, policy=POLICIES[self.policy], pin_share=0.8)
        self.now = 0.0
        self.pins = {}  # (namespace, tokens): [length, expires], in order of the last pinning
        self.slots = [[None] * PAGE for _ in range(N_PAGES)]
        self.published = {}  # (namespace, prefix): every prefix committed since the flush
        self.live = []

    @rule(
        target=jobs,
        namespace=namespaces,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=18),
        priority=st.integers(-1, 1),
    )
    def acquire(self, namespace, tokens, priority):
        key = as_tokens(tokens)
        hit = self.cache.hit_lengths(namespace, key, len(tokens) - 1)[1]
        assert hit == 0 or (namespace, tuple(tokens[:hit])) in self.published
        lease = self.cache.acquire(namespace, key, len(tokens) - 1, priority)
        assert lease.n_cached in (hit, hit - hit % PAGE)  # no page free for the copy: full pages
        if lease.copy is not None:
            n = lease.copy.n_slots
            self.slots[lease.copy.target][:n] = self.slots[lease.copy.source][:n]
        job = Job(namespace, tokens, lease, lease.n_cached)
        self.live.append(job)
        self.must_hold(job)
        self.miss_is_explained(job, hit)
        self.pins_may_have_yielded()
        return job

    @rule(job=jobs, more=st.lists(st.integers(0, 1), max_size=3), n=st.integers(1, 6))
    def compute(self, job, more, n):
        if job not in self.live:
            return
        job.tokens += more
        end = min(job.computed + n, len(job.tokens))
        got = self.cache.ensure(job.lease, end)
        if not got and self.live == [job]:  # alone, a request gets on whatever is pinned
            self.cache.detach(job.lease)
            got = self.cache.ensure(job.lease, end)
            assert got or end > N_PAGES * PAGE
        self.pins_may_have_yielded()
        if got:
            for i in range(job.computed, end):
                self.slots[job.lease.table[i // PAGE]][i % PAGE] = job.tokens[i]
            job.computed = end

    @rule(job=jobs)
    def commit(self, job):
        if job not in self.live:
            return
        self.cache.commit(job.lease, as_tokens(job.tokens[: job.computed]))
        for n in range(1, job.computed + 1):
            self.published[job.namespace, tuple(job.tokens[:n])] = None
        key = as_tokens(job.tokens[: job.computed])
        assert self.cache.hit_lengths(job.namespace, key, len(key))[1] == len(key)

    @rule(
        namespace=namespaces,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=18),
        priority=st.integers(-1, 1),
        ttl=st.sampled_from([0, 0, 3, 30]),
    )
    def serve(self, namespace, tokens, priority, ttl):
        """A request from start to end, as far as there is room; perhaps what it leaves is pinned.

        This is what fills the cache.
        """
        job = self.acquire(namespace, tokens, priority)
        self.compute(job, [], len(tokens))
        self.commit(job)
        self.release(job)
        if ttl:
            self.pin(namespace, tokens, ttl)

    @rule(job=jobs)
    def detach(self, job):
        if job in self.live:
            self.cache.detach(job.lease)

    @rule(job=consumes(jobs))
    def release(self, job):
        if job in self.live:
            self.live.remove(job)
            self.cache.release(job.lease)

    @rule(
        namespace=namespaces,
        tokens=st.lists(st.integers(0, 1), max_size=18),
        ttl=st.integers(1, 30),
    )
    def pin(self, namespace, tokens, ttl):
        key = as_tokens(tokens)
        computed = self.cache.hit_lengths(namespace, key, len(key))[1]
        n, error = self.cache.pin(namespace, key, self.now, ttl)
        assert (n, error is None) in ((computed, True), (0, False))
        if error is None:
            _, expires = self.pins.pop((namespace, tuple(tokens)), (0, 0.0))
            self.pins[namespace, tuple(tokens)] = (n, max(expires, self.now + ttl))

    @rule(namespace=namespaces, tokens=st.lists(st.integers(0, 1), max_size=18))
    def unpin(self, namespace, tokens):
        n, _ = self.pins.pop((namespace, tuple(tokens)), (0, 0.0))
        assert self.cache.unpin(namespace, as_tokens(tokens)) == n

    @rule(data=st.data(), ttl=st.integers(1, 30))
    def pin_what_was_published(self, data, ttl):
        if self.published:
            namespace, tokens = data.draw(st.sampled_from(list(self.published)))
            self.pin(namespace, list(tokens), ttl)

    @rule(data=st.data())
    def unpin_one(self, data):
        if self.pins:
            namespace, tokens = data.draw(st.sampled_from(list(self.pins)))
            assert (
                self.cache.unpin(namespace, as_tokens(tokens))
                == self.pins.pop((namespace, tokens))[0]
            )

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds):
        self.now += seconds
        self.cache.expire_pins(self.now)
        self.pins = {key: pin for key, pin in self.pins.items() if pin[1] > self.now}

    @rule(seldom=st.integers(0, 9))
    def flush(self, seldom):
        if seldom:
            return
        assert self.cache.flush() == (not self.live)
        if not self.live:
            self.pins.clear()
            self.published.clear()
            assert self.cache.pages.n_free == N_PAGES
            assert self.cache.tree.n_tokens == 0
            assert not self.cache.tree.roots

    @invariant()
    def every_request_reads_its_own_tokens(self):
        for job in self.live:
            self.must_hold(job)

    @invariant()
    def every_published_path_reads_its_own_tokens(self):
        for root in self.cache.tree.roots.values():
            stack = [(child, []) for child in root.children.values()]
            while stack:
                node, prefix = stack.pop()
                sequence = prefix + node.tokens.tolist()
                pages = self.cache.tree.path_pages(node, len(sequence))
                read = [self.slots[pages[i // PAGE]][i % PAGE] for i in range(len(sequence))]
                assert read == sequence
                stack += [(child, sequence) for child in node.children.values()]

    @invariant()
    def every_pin_holds_its_prefix(self):
        assert len(self.cache.pins) == len(self.pins)
        for (namespace, tokens), (n, _) in self.pins.items():
            assert self.cache.hit_lengths(namespace, as_tokens(tokens), n)[1] == n

    @invariant()
    def accounts_balance(self):
        assert invariants.check(self.cache) == []

    def pins_may_have_yielded(self):
        """To a lone request, the next to expire first; of equals the one pinned first."""
        while len(self.pins) > len(self.cache.pins):
            assert len(self.live) == 1
            del self.pins[min(self.pins, key=lambda key: self.pins[key][1])]

    def miss_is_explained(self, job, hit):
        limit = len(job.tokens) - 1
        key = as_tokens(job.tokens)
        reason = self.cache.miss_reason(job.namespace, key, job.lease.n_cached, limit)
        assert (reason is None) == (hit == limit)
        first_lost = tuple(job.tokens[: hit + 1])
        if reason == "evicted":
            assert (job.namespace, first_lost) in self.published
        elif reason == "namespace":
            other = {"": "b", "b": ""}[job.namespace]
            assert (other, first_lost) in self.published

    def must_hold(self, job):
        table = job.lease.table
        read = [self.slots[table[i // PAGE]][i % PAGE] for i in range(job.computed)]
        assert read == job.tokens[: job.computed]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_cache_agrees_with_the_model(policy):
    machine = type(f"Under_{policy}", (PrefixCacheModel,), {"policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=50))
