"""The prefix cache against a dictionary model, over two tokens so that everything collides.

A fake pool remembers which token each slot was computed for, so a wrong page table, a missing
copy-on-write or a page given to two writers shows as a wrong token, not as a plausible number.
"""

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ramify.radix_cache import invariants
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import Lease, PrefixCache

PAGE = 4
N_PAGES = 24


@dataclass(eq=False)
class Job:
    """A request as the model sees it: its tokens, how many are computed, and its lease."""

    namespace: str
    tokens: list[int]
    lease: Lease
    computed: int


class PrefixCacheModel(RuleBasedStateMachine):
    """Random acquire, compute, commit, detach, release, flush."""

    jobs = Bundle("jobs")

    def __init__(self):
        super().__init__()
        self.cache = PrefixCache(N_PAGES, PAGE)
        self.slots = [[None] * PAGE for _ in range(N_PAGES)]
        self.published = set()  # (namespace, prefix): every prefix ever committed since the flush
        self.live = []

    @rule(
        target=jobs,
        namespace=st.sampled_from(["", "b"]),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=18),
    )
    def acquire(self, namespace, tokens):
        key = as_tokens(tokens)
        hit = self.cache.hit_length(namespace, key, len(tokens) - 1)
        assert hit == 0 or (namespace, tuple(tokens[:hit])) in self.published
        lease = self.cache.acquire(namespace, key, len(tokens) - 1)
        assert lease.n_cached in (hit, hit - hit % PAGE)  # no page free for the copy: full pages
        if lease.copy is not None:
            n = lease.copy.n_slots
            self.slots[lease.copy.target][:n] = self.slots[lease.copy.source][:n]
        job = Job(namespace, tokens, lease, lease.n_cached)
        self.live.append(job)
        self.must_hold(job)
        return job

    @rule(job=jobs, more=st.lists(st.integers(0, 1), max_size=3), n=st.integers(1, 6))
    def compute(self, job, more, n):
        if job not in self.live:
            return
        job.tokens += more
        end = min(job.computed + n, len(job.tokens))
        if self.cache.ensure(job.lease, end):
            for i in range(job.computed, end):
                self.slots[job.lease.table[i // PAGE]][i % PAGE] = job.tokens[i]
            job.computed = end

    @rule(job=jobs)
    def commit(self, job):
        if job not in self.live:
            return
        self.cache.commit(job.lease, as_tokens(job.tokens[: job.computed]))
        for n in range(1, job.computed + 1):
            self.published.add((job.namespace, tuple(job.tokens[:n])))
        key = as_tokens(job.tokens[: job.computed])
        assert self.cache.hit_length(job.namespace, key, len(key)) == len(key)

    @rule(job=jobs)
    def detach(self, job):
        if job in self.live:
            self.cache.detach(job.lease)

    @rule(job=consumes(jobs))
    def release(self, job):
        if job in self.live:
            self.live.remove(job)
            self.cache.release(job.lease)

    @rule()
    def flush(self):
        assert self.cache.flush() == (not self.live)
        if not self.live:
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
    def accounts_balance(self):
        assert invariants.check(self.cache) == []

    def must_hold(self, job):
        table = job.lease.table
        read = [self.slots[table[i // PAGE]][i % PAGE] for i in range(job.computed)]
        assert read == job.tokens[: job.computed]


TestPrefixCacheModel = PrefixCacheModel.TestCase
TestPrefixCacheModel.settings = settings(max_examples=150, stateful_step_count=50)
