"""Work lists in FlashInfer's terms: what the library would answer is what our reference answers.

The library itself runs on GPUs only. `paged_prefill` says what its documentation promises.
"""

import importlib.util
import inspect
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "triton"))
from paged_prefill import PagedPrefill, merge_base_2
from steps import TOLERANCE, Step, make_step
from test_gpu_runner import Run, cpu_runner, gpu_runner, tiny_model

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.dispatch import load_ops
from ramify.kernels.flashinfer.attention import FlashInferAttention, unsupported
from ramify.kernels.flashinfer.requests import requests_of
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.shapes import FP8
from ramify.kernels.work_list import check, make_work_list

FP32 = torch.float32


class Rig:
    """The adapter over the stand-in, and every wrapper that it has made."""

    def __init__(self):
        self.wrappers = []
        self.attention = FlashInferAttention(self._make, merge_base_2).paged_attention

    def _make(self):
        self.wrappers.append(PagedPrefill())
        return self.wrappers[-1]

    @property
    def plans(self):
        return [plan for wrapper in self.wrappers for plan in wrapper.plans]

    @property
    def runs(self):
        return [run for wrapper in self.wrappers for run in wrapper.runs]


def assert_same(step, options=PLAIN, near=1e-5):
    rig = Rig()
    oracle = step.run(reference, options)
    assert not oracle.isnan().any()
    torch.testing.assert_close(step.run(rig.attention, options), oracle, atol=near, rtol=near)
    return rig


def planned_step(seed):
    """As the engine plans: decode rows and chunks, some on a trunk, runs of keys in pieces."""
    draw = random.Random(seed)
    page, trunk = draw.choice([16, 64]), draw.choice([0, 0, 5])
    kinds = [(trunk * page + draw.randint(1, 700), 1) for _ in range(draw.randint(0, 8))]
    chunks = [draw.randint(1, 300) for _ in range(draw.randint(not kinds, 3))]
    kinds += [(trunk * page + length, draw.randint(1, length)) for length in chunks]
    draw.shuffle(kinds)
    kv_heads, group = draw.choice([1, 2]), draw.choice([1, 3])
    splits = draw.choice([1, 1, 12, 40])
    return make_step(
        kinds, kv_heads * group, kv_heads, 8, FP32, page=page, trunk=trunk, splits=splits, seed=seed
    )


@pytest.mark.parametrize("seed", range(60))
def test_lists_as_the_engine_plans_them(seed):
    assert_same(planned_step(seed))


def any_step(seed):
    """Any list that keeps the rules: rows in any order, before, inside and beyond their items."""
    draw = random.Random(seed)
    page, tokens = draw.choice([4, 16]), draw.randint(1, 14)
    n_pages = draw.randint(2, 6)
    positions = [draw.randrange(page * n_pages + 3) for _ in range(tokens)]
    if draw.random() < 0.5:
        positions = [draw.randint(0, max(page * n_pages - tokens, 0)) + i for i in range(tokens)]
    order = range(tokens)
    spans = [(0, draw.randint(1, page * n_pages), draw.sample(order, tokens))]
    for _ in range(draw.randint(0, 4)):
        begin = page * draw.randrange(n_pages)
        some = draw.sample(order, draw.randint(0, tokens))
        spans.append((begin, draw.randint(1, page * n_pages - begin), draw.choice([some, order])))
    items, rows, pages, partials = [], [], [], 0
    for begin, count, some in spans:
        number = -1 if len(spans) == 1 else partials
        items.append((len(rows), len(some), len(pages), begin, count, number))
        rows += some
        pages += draw.sample(range(n_pages), n_pages)[begin // page : -(-(begin + count) // page)]
        partials += len(some)
    work = make_work_list(items, rows, positions, pages)
    check(work, n_pages, page)
    torch.manual_seed(seed)
    return Step(torch.randn(tokens, 4, 8), *torch.randn(2, n_pages, 2, page, 8), work)


@pytest.mark.parametrize("seed", range(150))
def test_any_list_is_translated_exactly(seed):
    assert_same(any_step(seed))


def test_the_random_lists_hold_what_they_are_meant_to():
    """Otherwise the test above would prove less than it says."""
    found = set()
    for seed in range(150):
        work = any_step(seed).work
        for begin, count, _, first, keys, _ in work.items.tolist():
            rows = work.rows[begin : begin + count].long()
            seen = [min(p + 1, first + keys) - first for p in work.positions[rows].tolist()]
            found |= {"blind"} if any(s <= 0 for s in seen) else set()
            found |= {"partly"} if any(0 < s < keys for s in seen) else set()
            found |= {"beyond"} if any(work.positions[rows] >= first + keys) else set()
        requests = requests_of(work, any_step(seed).k_pool.shape[2])
        found |= {("several", i) for i, r in enumerate(requests) if len(r.last_page_len) > 1}
        found |= {("none", i) for i, r in enumerate(requests) if not r.tokens}
    several = {("several", 0), ("several", 1)}
    assert found == {"blind", "partly", "beyond", ("none", 0)} | several


def lists(requests):
    return requests.qo_indptr, requests.kv_indptr, requests.kv_indices, requests.last_page_len


def test_the_kinds_of_a_step():
    """Two decode rows on a trunk of four pages, and a chunk of three tokens, by hand."""
    items = [(0, 2, 0, 0, 64, 0), (2, 1, 4, 64, 3, 2), (3, 1, 5, 64, 20, 3), (4, 3, 7, 0, 18, -1)]
    rows, pages = [1, 0, 1, 0, 2, 3, 4], [7, 8, 9, 4, 2, 5, 6, 3, 1]
    work = make_work_list(items, rows, [83, 66, 15, 16, 17], pages)
    causal, others = requests_of(work, 16)
    assert lists(causal) == ([0, 3], [0, 2], [3, 1], [2])
    assert (causal.tokens, causal.partials, causal.n_direct) == ([2, 3, 4], [], 3)
    assert lists(others) == ([0, 2, 3, 4], [0, 4, 5, 7], [7, 8, 9, 4, 2, 5, 6], [16, 3, 4])
    assert (others.tokens, others.partials, others.n_direct) == ([1, 0, 1, 0], [0, 1, 2, 3], 0)


def test_a_chunk_cut_in_the_middle_is_causal_before_the_cut_and_not_after():
    items = [(0, 6, 0, 0, 16, 0), (6, 4, 1, 16, 16, 6)]
    work = make_work_list(items, [0, 1, 2, 3, 4, 5, 2, 3, 4, 5], [14, 15, 16, 17, 18, 19], [3, 4])
    causal, others = requests_of(work, 16)
    assert (causal.tokens, causal.partials) == ([0, 1, 2, 3, 4, 5], [0, 1, 6, 7, 8, 9])
    assert lists(causal) == ([0, 2, 6], [0, 1, 2], [3, 4], [16, 4])
    assert (others.tokens, others.partials) == ([2, 3, 4, 5], [2, 3, 4, 5])
    assert lists(others) == ([0, 4], [0, 1], [3], [16])


def test_keys_beyond_the_rows_are_left_out():
    """The items of a recorded step reach to the end of the page table: nobody has written there."""
    step = make_step([(20, 1), (40, 1)], 2, 1, 8, FP32)
    longer = step.work.items.clone()
    longer[:, 4] += 5
    work = replace(
        step.work, items=longer, pages=torch.cat((step.work.pages, torch.zeros(1).int()))
    )
    ours = replace(step, work=work).run(Rig().attention)
    torch.testing.assert_close(ours, step.run(reference))


def test_an_item_inside_a_page_is_refused():
    work = make_work_list([(0, 1, 0, 3, 4, -1)], [0], [6], [1])
    with pytest.raises(ValueError, match="must begin with a page of 16 keys"):
        requests_of(work, 16)


@pytest.mark.parametrize("seed", range(30))
def test_options(seed):
    step = planned_step(seed)
    rig = assert_same(step, AttentionOptions(soft_cap=3.0, k_scale=0.5, v_scale=2.0))
    assert {run["v_scale"] for run in rig.runs} == {2.0}
    assert {options["logits_soft_cap"] for _, options in rig.plans} == {3.0}


def test_fp8_pools():
    step = make_step([(90, 1), (50, 20)], 4, 2, 16, torch.bfloat16, stored=FP8)
    clean = [pool.float().nan_to_num().to(FP8) for pool in (step.k_pool, step.v_pool)]
    step = replace(step, k_pool=clean[0], v_pool=clean[1])
    rig = assert_same(step, AttentionOptions(k_scale=0.5, v_scale=2.0), near=5e-2)
    assert {options["kv_data_type"] for _, options in rig.plans} == {FP8}


def test_a_window_is_right_or_refused():
    """Any list: rows that come after their keys cannot have a window there, unless it is wide."""
    refused = []
    for seed in range(150):
        step, options = any_step(seed), AttentionOptions(window=(1, 5, 30, 200)[seed % 4])
        try:
            assert_same(step, options)
        except ValueError as error:
            refused.append(str(error))
    assert 40 < len(refused) < 110
    assert all("cannot be asked for a window" in reason for reason in refused)


@pytest.mark.parametrize("window", [1, 7, 40, 1000])
def test_a_window_over_sequences_that_share_nothing(window):
    step = make_step([(130, 1), (90, 30), (1, 1), (64, 64), (17, 3)], 4, 2, 8, FP32)
    assert_same(step, AttentionOptions(window=window))


# --- plans ---------------------------------------------------------------------------------------


def test_a_list_is_planned_once_for_all_layers():
    rig, step = Rig(), planned_step(3)
    first = step.run(rig.attention)
    plans, runs = len(rig.plans), len(rig.runs)
    assert torch.equal(step.run(rig.attention), first)
    assert torch.equal(step.run(rig.attention), first)
    assert (len(rig.plans), len(rig.runs)) == (plans, 3 * runs)


def test_another_list_another_shape_or_other_options_are_planned_anew():
    rig, steps = Rig(), [planned_step(seed) for seed in (3, 5)]
    for step in (*steps, *steps):
        torch.testing.assert_close(step.run(rig.attention), step.run(reference))
    plans = len(rig.plans)
    capped = AttentionOptions(soft_cap=2.0)
    torch.testing.assert_close(steps[1].run(rig.attention, capped), steps[1].run(reference, capped))
    assert len(rig.plans) > plans
    wider = replace(steps[1], q=steps[1].q.repeat(1, 2, 1))
    torch.testing.assert_close(wider.run(rig.attention), wider.run(reference))


def test_pools_of_another_type_have_wrappers_of_their_own():
    rig = Rig()
    for dtype in (FP32, torch.bfloat16, torch.bfloat16):
        step = make_step([(20, 1), (30, 4)], 2, 1, 8, dtype)
        near = TOLERANCE[dtype]
        ours, oracle = step.run(rig.attention), step.run(reference)
        torch.testing.assert_close(ours, oracle, atol=near, rtol=near)


def test_steps_take_turns_at_the_wrappers():
    """A wrapper's next plan may overwrite memory that its last one is still being copied from."""
    rig = Rig()
    decode = [make_step([(20 + i, 1)], 2, 1, 8, FP32) for i in range(5)]
    decode[0].run(rig.attention)  # makes them
    used = []
    for step in decode[1:]:
        before = [len(wrapper.plans) for wrapper in rig.wrappers]
        step.run(rig.attention)
        used.append([i for i, w in enumerate(rig.wrappers) if len(w.plans) > before[i]])
    assert used[0] != used[1]
    assert used[:2] == used[2:]


def test_steps_of_one_kind_that_merge_nothing_gather_nothing():
    """Whatever the order of their page tables, which is the order of the items."""
    for kinds in ([(20 + 30 * i, 1) for i in range(6)], [(20 + 30 * i, 9) for i in range(6)]):
        rig = assert_same(make_step(kinds, 2, 1, 8, FP32, seed=4))
        assert [run["out"] is not None for run in rig.runs] == [True]


def test_plans_are_made_from_the_list_on_the_host():
    step = planned_step(3)
    spoilt = replace(step.work, items=torch.zeros_like(step.work.items), on_host=step.work)
    assert_same(replace(step, work=step.work))
    ours = replace(step, work=spoilt).run(Rig().attention)
    torch.testing.assert_close(ours, step.run(reference))


def test_the_runner_for_gpus_hands_on_what_it_made_the_step_of():
    """The same tokens, and no more plans than steps have kinds, whatever the number of layers."""
    model, rig, lists_seen = tiny_model("qwen3"), Rig(), []

    def attention(q, k_pool, v_pool, work, scale, options=PLAIN):
        assert work.on_host is not None
        if not lists_seen or lists_seen[-1] is not work:
            lists_seen.append(work)
        return rig.attention(q, k_pool, v_pool, work, scale, options)

    sizes = {"n_pages": 30, "page_size": 64, "most": 9}
    first = Run(cpu_runner(model, 30, 64), 2, overlap=False, **sizes)
    expected = first.answers()
    own = {"backend": "flashinfer", "paged_attention": attention}
    model.ops = SimpleNamespace(**vars(load_ops("reference")) | own)
    with pytest.raises(ValueError, match="no decode step can be recorded with FlashInfer"):
        gpu_runner(model, graph_rows=2, **sizes)
    runner, recordings = gpu_runner(model, graph_rows=0, **sizes)
    assert Run(runner, 2, overlap=True, **sizes).answers() == expected
    assert recordings.replays == 0
    assert len(lists_seen) <= len(rig.plans) <= 2 * len(lists_seen)


# --- the library ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_said():
    assert unsupported(torch.bfloat16, 128, 4) is None
    assert unsupported(torch.float16, 64, 16) is None
    assert "not in float32" in unsupported(FP32, 128, 4)
    assert "head dims are 64, 128, 256, the model's is 80" in unsupported(torch.bfloat16, 80, 4)
    assert "17 query heads" in unsupported(torch.bfloat16, 128, 17)


@pytest.mark.skipif(importlib.util.find_spec("flashinfer") is None, reason="no flashinfer here")
def test_the_library_takes_what_it_is_given():
    """Its signatures, and the defaults that we count on: it can be asked on a CPU for no more."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper as Theirs

    rig = assert_same(planned_step(3), AttentionOptions(soft_cap=3.0, v_scale=2.0))
    for method, calls in (
        (Theirs.plan, [(args, options) for args, options in rig.plans]),
        (Theirs.run, [((None, None), options) for options in rig.runs]),
    ):
        for args, options in calls:
            inspect.signature(method).bind(None, *args, **options)
    made = inspect.signature(Theirs.__init__).bind(None, None, kv_layout="HND")
    made.apply_defaults()
    assert (made.arguments["use_cuda_graph"], made.arguments["backend"]) == (False, "auto")
    names = list(inspect.signature(Theirs.plan).parameters)[1:9]
    assert names == list(inspect.signature(PagedPrefill.plan).parameters)[1:9]
    run = inspect.signature(Theirs.run).parameters
    assert "lse_base" not in run or run["lse_base"].default == "log2"
