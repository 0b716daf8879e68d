"""The attention kernels over work lists: C++ against the reference, the reference against dense.

Pages outside the work list, and unused slots of the pages in it, hold NaN: a kernel that reads one
of them cannot pass, because NaN spreads.
"""

import itertools
import random
from dataclasses import dataclass, replace

import pytest
import torch

from ramify.kernels.attention_options import AttentionOptions
from ramify.kernels.dispatch import load_ops
from ramify.kernels.work_list import DIRECT, Item, WorkList, check, make_work_list

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}
PAGE = 16
OPS, REFERENCE = load_ops("cpu"), load_ops("reference")


@pytest.fixture(autouse=True)
def _one_thread():
    yield
    torch.set_num_threads(1)


@dataclass
class Sequence:
    """A request: `pages` hold its `length` keys; the last `queries` of them are asked about."""

    pages: list[int]
    length: int
    queries: int


@dataclass
class Step:
    """Queries, pools that hold NaN in every slot nobody owns, and what is asked."""

    q: torch.Tensor
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    work: WorkList

    def run(self, ops):
        scale = self.q.shape[2] ** -0.5
        return ops.paged_attention(self.q, self.k_pool, self.v_pool, self.work, scale)


def make_step(sequences, work, heads, kv_heads, head_dim, dtype, page=PAGE):
    """Pools of NaN with random keys and values in the slots that a sequence owns."""
    n_pages = 2 + max(max(s.pages) for s in sequences)
    k_pool = torch.full((n_pages, kv_heads, page, head_dim), torch.nan, dtype=dtype)
    v_pool = k_pool.clone()
    for s in sequences:
        for i, number in enumerate(s.pages):
            used = min(page, s.length - i * page)
            shape = (kv_heads, used, head_dim)
            k_pool[number, :, :used] = torch.randn(shape).to(dtype)
            v_pool[number, :, :used] = torch.randn(shape).to(dtype)
    check(work, n_pages, page)
    q = torch.randn(len(work.positions), heads, head_dim).to(dtype)
    return Step(q, k_pool, v_pool, work)


def plain(sequences, splits=1, page=PAGE):
    """The work list without sharing: one item per request, or `splits` items at odd boundaries."""
    items, rows, positions, pages = [], [], [], []
    partial = 0
    for s in sequences:
        row, first_page = len(rows), len(pages)
        rows += range(len(positions), len(positions) + s.queries)
        positions += range(s.length - s.queries, s.length)
        pages += s.pages
        cuts = [s.length * i // splits for i in range(splits + 1)]
        runs = [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
        for begin, end in runs:
            where = partial if len(runs) > 1 else DIRECT
            partial += s.queries if len(runs) > 1 else 0
            items.append(
                Item(row, s.queries, first_page + begin // page, begin, end - begin, where)
            )
    return make_work_list(items, rows, positions, pages)


def spread(lengths_and_queries, seed=0, page=PAGE):
    """Sequences on shuffled pages, with gaps between them."""
    counts = [-(-length // page) for length, _ in lengths_and_queries]
    ids = list(range(1, 2 * sum(counts) + 1))
    random.Random(seed).shuffle(ids)
    return [
        Sequence([ids.pop() for _ in range(count)], length, queries)
        for count, (length, queries) in zip(counts, lengths_and_queries, strict=True)
    ]


def assert_same(step, dtype):
    mine, oracle = step.run(OPS), step.run(REFERENCE)
    assert not oracle.isnan().any()
    torch.testing.assert_close(
        mine.float(), oracle.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


MIXED = [(1, 1), (16, 1), (17, 1), (65, 1), (300, 1), (5, 5), (40, 33), (150, 20), (64, 64)]
HEADS = [(9, 3, 64), (14, 2, 64), (4, 4, 8), (8, 1, 16), (6, 2, 24), (4, 2, 80), (3, 1, 96),
         (5, 1, 128), (2, 2, 256), (14, 2, 40)]  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_decode_and_prefill_rows_mixed(heads, kv_heads, head_dim, dtype):
    sequences = spread(MIXED)
    step = make_step(sequences, plain(sequences), heads, kv_heads, head_dim, dtype)
    assert_same(step, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("splits", [2, 3, 7])
def test_split_keys_are_merged(splits, dtype):
    """Boundaries fall inside pages, and whole runs lie beyond the causal limit of some rows."""
    sequences = spread(MIXED, seed=splits)
    step = make_step(sequences, plain(sequences, splits), 9, 3, 64, dtype)
    assert_same(step, dtype)
    whole = replace(step, work=plain(sequences)).run(REFERENCE)
    torch.testing.assert_close(step.run(OPS), whole, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("page", [1, 5, 16, 64, 100])
def test_any_page_size(page):
    sequences = spread(MIXED, page=page)
    work = plain(sequences, 2, page)
    assert_same(make_step(sequences, work, 4, 2, 16, torch.float32, page), torch.float32)


def shared_trunk(trunk_length, tails, seed=0):
    """Requests that read one trunk: its item has all their rows; then each has its own item.

    The trunk ends inside a page, of which every request has its own copy from there on.
    """
    pages = list(range(1, 400))
    random.Random(seed).shuffle(pages)
    trunk = [pages.pop() for _ in range(-(-trunk_length // PAGE))]
    sequences = [Sequence(trunk, trunk_length, 0)]
    positions, table = [], list(trunk)
    items = [Item(0, len(tails), 0, 0, trunk_length, 0)]
    for row, length in enumerate(tails):
        total = trunk_length + length
        first = trunk_length // PAGE
        own = [pages.pop() for _ in range(-(-total // PAGE) - first)]
        items.append(Item(row, 1, len(table), trunk_length, length, len(tails) + row))
        table += own
        positions.append(total - 1)
        sequences.append(Sequence(trunk[:first] + own, total, 1))
    work = make_work_list(items, list(range(len(tails))), positions, table)
    return sequences, work


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("trunk", "requests"), [(48, 2), (50, 5), (129, 16), (700, 70)])
def test_a_trunk_read_once_for_all_requests(trunk, requests, dtype):
    sequences, work = shared_trunk(trunk, [1 + 7 * i % 40 for i in range(requests)])
    step = make_step(sequences, work, 9, 3, 64, dtype)
    assert_same(step, dtype)


def test_the_trunk_list_equals_the_plain_list():
    """Same keys by either list: the tails' first page holds the trunk's end again."""
    sequences, work = shared_trunk(50, [3, 20, 1])
    step = make_step(sequences, work, 6, 2, 32, torch.float32)
    for s in sequences[1:]:
        trunk_page, own = sequences[0].pages[3], s.pages[3]
        for pool in (step.k_pool, step.v_pool):
            pool[own, :, :2] = pool[trunk_page, :, :2]
    whole = replace(step, work=plain(sequences[1:])).run(REFERENCE)
    torch.testing.assert_close(step.run(OPS), whole, atol=1e-5, rtol=1e-5)


def test_reference_is_dense_attention():
    sequences = spread([(70, 30)])
    step = make_step(sequences, plain(sequences), 6, 2, 16, torch.float32)
    owned = [pool[sequences[0].pages].transpose(1, 2).flatten(0, 1)[:70].transpose(0, 1)
             for pool in (step.k_pool, step.v_pool)]  # fmt: skip
    keys, values = (x.repeat_interleave(3, 0) for x in owned)
    scores = step.q.transpose(0, 1) @ keys.transpose(1, 2) / 4
    hidden = torch.arange(70)[None, :] > torch.arange(40, 70)[:, None]
    dense = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ values
    torch.testing.assert_close(step.run(REFERENCE), dense.transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_does_not_depend_on_its_company(dtype):
    """Bit for bit: the promise of deterministic mode. Chunks of any size, alone or in a batch."""
    sequences = spread([(150, 100), (90, 1)])
    step = make_step(sequences, plain(sequences), 9, 3, 64, dtype)
    together = step.run(OPS)
    for begin, end in [(0, 1), (0, 7), (7, 64), (64, 100)]:
        chunk = [Sequence(sequences[0].pages, 50 + end, end - begin)]
        alone = replace(step, q=step.q[begin:end].contiguous(), work=plain(chunk)).run(OPS)
        assert torch.equal(alone, together[begin:end])
    decode = replace(step, q=step.q[100:].contiguous(), work=plain(sequences[1:])).run(OPS)
    assert torch.equal(decode, together[100:])


def test_two_threads_give_the_same_bits():
    sequences = spread(MIXED)
    step = make_step(sequences, plain(sequences, 2), 9, 3, 64, torch.bfloat16)
    alone = step.run(OPS)
    torch.set_num_threads(2)
    assert torch.equal(step.run(OPS), alone)


def test_items_without_rows_fill_a_list():
    sequences = spread([(40, 3), (20, 1)])
    step = make_step(sequences, plain(sequences, 2), 4, 2, 16, torch.float32)
    items = torch.nn.functional.pad(step.work.items, (0, 0, 2, 3))
    filled = replace(step.work, items=items)
    check(filled, len(step.k_pool), PAGE)
    for ops in (OPS, REFERENCE):
        assert torch.equal(replace(step, work=filled).run(ops), step.run(ops))


def test_large_scores_do_not_overflow():
    sequences = spread([(100, 40)])
    step = make_step(sequences, plain(sequences), 4, 2, 16, torch.float32)
    step.q *= 1e3  # scores of some thousands: exp of them is infinite in fp32
    torch.testing.assert_close(step.run(OPS), step.run(REFERENCE), atol=1e-2, rtol=1e-2)


def test_random_lists():
    """Many small ragged steps, all shapes drawn."""
    draw = random.Random(7)
    for seed in range(60):
        kinds = [(draw.randint(1, 90), 1) for _ in range(draw.randint(0, 6))]
        kinds += [(n, draw.randint(1, n)) for n in draw.choices(range(1, 120), k=2)]
        sequences = spread(kinds, seed)
        kv_heads, group = draw.choice([1, 2, 3]), draw.randint(1, 8)
        dtype = draw.choice(list(TOLERANCE))
        work = plain(sequences, draw.choice([1, 1, 2, 4]))
        head_dim = draw.choice([8, 16, 32, 64])
        assert_same(make_step(sequences, work, kv_heads * group, kv_heads, head_dim, dtype), dtype)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows", 99), ("pages", 10_000), ("pages", -1), ("merge_index", 99), ("merge_indptr", 99)],
)
def test_an_index_outside_its_array_is_an_error(field, value):
    sequences = spread([(40, 3), (20, 1)])
    step = make_step(sequences, plain(sequences, 2), 4, 2, 16, torch.float32)
    wrong = getattr(step.work, field).clone()
    wrong[-1] = value
    with pytest.raises(ValueError, match="work list"):
        replace(step, work=replace(step.work, **{field: wrong})).run(OPS)


@pytest.mark.parametrize(("column", "value"), [(0, -1), (1, 9), (2, 9), (3, -5), (4, 0), (5, 9)])
def test_an_item_outside_its_arrays_is_an_error(column, value):
    sequences = spread([(40, 3), (20, 1)])
    step = make_step(sequences, plain(sequences, 2), 4, 2, 16, torch.float32)
    items = step.work.items.clone()
    items[-1, column] = value
    broken = replace(step.work, items=items)
    with pytest.raises(ValueError, match="work list"):
        replace(step, work=broken).run(OPS)
    with pytest.raises(ValueError, match="item"):
        check(broken, len(step.k_pool), PAGE)


def test_wrong_sizes_are_named():
    sequences = spread([(40, 3)])
    step = make_step(sequences, plain(sequences), 4, 2, 16, torch.float32)
    for ops in (OPS, REFERENCE):
        with pytest.raises(ValueError, match="3 tokens, q has 2"):
            replace(step, q=step.q[:2]).run(ops)
        with pytest.raises(ValueError, match="v_pool must be"):
            replace(step, v_pool=step.v_pool[1:]).run(ops)
        with pytest.raises(ValueError, match="multiple of K/V heads"):
            replace(step, q=step.q[:, :3].contiguous()).run(ops)
    with pytest.raises(ValueError, match="merge_indptr must be"):
        replace(step.work, merge_indptr=step.work.merge_indptr[1:])


def test_what_the_cpu_has_not_is_refused():
    """An option that did nothing would be a wrong answer."""
    q, pool = torch.zeros(1, 2, 64), torch.zeros(1, 2, 16, 64)
    work = make_work_list([(0, 1, 0, 0, 1, -1)], [0], [0], [0])
    with pytest.raises(ValueError, match="no attention options"):
        load_ops("cpu").paged_attention(q, pool, pool, work, 1.0, AttentionOptions(window=4))
