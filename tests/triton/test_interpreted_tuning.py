"""The tuner as a whole, in the interpreter: right tiles, made-up times, a file, an engine's ops.

Steps are made as on a GPU, on tensors of the CPU; only the clock is not a clock.
"""

import itertools
from itertools import zip_longest

import pytest
import torch

from ramify.frontend_api.commands.tune import shape_of, tune_card
from ramify.kernels.dispatch import load_ops
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.triton import attention
from ramify.kernels.triton.stamp import kernel_stamp
from ramify.kernels.triton.tile_table import (
    AttentionShape,
    Tiles,
    candidates,
    default_tiles,
)
from ramify.srt.errors import RamifyError
from ramify.srt.execution.device import Device
from ramify.srt.tuning.loads import Decode, Prefill, Steps
from ramify.srt.tuning.store import measured_tiles, read, tuning_file
from ramify.srt.tuning.tuner import Plan, in_tiles, tune, why_not

CPU = Device(torch.device("cpu"))
SHAPE = AttentionShape(2, 1, 16, 2, 2, 32)  # of few candidates: the interpreter is slow
BF16 = torch.bfloat16
SMALL = (Decode(1, 70), Decode(3, 100))
LARGE = (Prefill(40, 100), Decode(6, 160, trunk=64))
TINY = Plan(SMALL, LARGE, rounds=2)


class Card(Device):
    """The CPU, called as a card is."""

    name = "Test card"


class Clock:
    """Has the n-th of the tiles, in turn, take `seconds[n]`, else one second. Runs nothing."""

    def __init__(self, n_tiles, seconds):
        self.turn = itertools.cycle(range(n_tiles))
        self.seconds = seconds

    def __call__(self, call):
        return self.seconds.get(next(self.turn), 1.0)


def in_two_parts(first, second, n_first):
    """The clock of the small launch, then that of the large one."""
    calls = itertools.count()
    return lambda call: (first if next(calls) < n_first else second)(call)


def clock(small, large, plan=TINY, n_dropped=0):
    n_small, n_large = len(candidates(SHAPE).small) - n_dropped, len(candidates(SHAPE).large)
    return in_two_parts(
        Clock(n_small, small), Clock(n_large, large),
        n_small * len(plan.small) * plan.rounds,
    )  # fmt: skip


def steps(shape=SHAPE):
    return Steps(shape, CPU, BF16, BF16)


@pytest.mark.parametrize(
    ("load", "rows", "several"), [(SMALL[1], 3, False), (LARGE[1], 6, True), (LARGE[0], 40, True)]
)
def test_steps_are_whole_steps_of_an_engine(load, rows, several):
    """The torch twin gives every row of them a result, and reads no page that they have not."""
    (step,) = steps().of([load])
    assert len(step.q) == rows
    assert (step.work.max_rows > 1) == several
    result = step.run(reference)
    assert (result.float().abs().sum((1, 2)) > 0).all()
    near = {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(step.run(in_tiles(default_tiles(SHAPE))), result, **near)


def test_a_shared_trunk_is_read_once():
    (step,) = steps().of([LARGE[1]])
    assert step.work.items[:, 1].max() == 6


def test_pools_do_not_grow_with_the_contexts(monkeypatch):
    monkeypatch.setattr("ramify.srt.tuning.loads.POOL_BYTES", 2 * 32 * 16 * 2)
    (step,) = steps().of([Decode(5, 100)])
    assert len(step.k_pool) == 2
    assert step.work.pages.max() == 1
    assert not step.run(in_tiles(default_tiles(SHAPE))).isnan().any()


@pytest.mark.parametrize("head_dim", [16, 256])
def test_every_candidate_is_right(head_dim):
    """Pages of 64 allow all of them. Those of the same sides are the same to the interpreter."""
    shape = SHAPE._replace(head_dim=head_dim, page_size=64)
    ragged, listed, default = steps(shape).ragged(), candidates(shape), default_tiles(shape)
    small, large = ({tile[:2]: tile for tile in tiles}.values() for tiles in listed)
    assert (len(small), len(large)) == (2, 3)
    expected = ragged.run(reference)
    for one, other in zip_longest(small, large):
        tiles = Tiles(one or default.small, other or default.large)
        assert why_not(in_tiles(tiles), ragged, expected, []) is None, tiles


def test_wrong_results_are_told():
    ragged = steps().ragged()
    expected = ragged.run(reference)
    right = in_tiles(default_tiles(SHAPE))
    assert why_not(right, ragged, expected, []) is None
    expected[3, 1, 2] += 32
    assert why_not(right, ragged, expected, []) == "its results are wrong, by up to 32"


def test_a_result_that_is_no_number_is_wrong():
    """As of a tile that reads what nobody wrote."""
    ragged = steps().ragged()
    expected = ragged.run(reference)
    assert not expected.isnan().any()
    assert ragged.k_pool.isnan().any()
    ragged.v_pool[0] = torch.nan
    assert "results are wrong" in why_not(in_tiles(default_tiles(SHAPE)), ragged, expected, [])


def test_a_wrong_candidate_is_dropped_however_fast(monkeypatch):
    bad = candidates(SHAPE).small[1]
    whole = attention.attend_items

    def broken(q, k_pool, v_pool, work, scale, options, out, partial, lse, tiles_of):
        whole(q, k_pool, v_pool, work, scale, options, out, partial, lse, tiles_of)
        if tiles_of(SHAPE).small == bad:
            out.zero_()

    monkeypatch.setattr(attention, "attend_items", broken)
    plan = Plan(SMALL[:1], LARGE[:1], rounds=1)
    tiles, (small, large) = tune(steps(), clock({2: 0.5}, {1: 0.5}, plan, n_dropped=1), plan)
    assert tiles == Tiles(small.timed[2].candidate, candidates(SHAPE).large[1])
    assert (small.gain, large.gain) == (pytest.approx(1.0), pytest.approx(1.0))
    assert [dropped.tile for dropped in small.dropped] == [bad]
    assert bad not in [timed.candidate for timed in small.timed]


def test_no_candidate_at_all(monkeypatch):
    monkeypatch.setattr(attention, "merge_partials", lambda partial, lse, work, out: out.zero_())
    with pytest.raises(RamifyError, match="no small tile of attention can be used: its results"):
        tune(steps(), lambda call: 1.0, TINY)


def test_what_is_measured_is_kept_told_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    card, counted = Card(torch.device("cpu")), []
    timer = clock({3: 0.5}, {1: 0.99})
    text = tune_card(card, SHAPE, lambda call: counted.append(1) or timer(call), TINY)
    assert len(counted) == TINY.n_timings(SHAPE)
    best = default_tiles(SHAPE)._replace(small=candidates(SHAPE).small[3])
    file = tuning_file("Test card")
    kept = read(file, "Test card", kernel_stamp()).measured
    assert kept == {SHAPE: best}
    lines = text.splitlines()
    assert lines[0] == "attention on Test card: 2 query heads, 1 K/V heads of 16, pages of 32"
    assert "small tile: 16 x 64, 4 warps, 5 stages: 100.0% faster with" in text
    assert "large tile: 128 x 64, 8 warps, 2 stages: kept" in text
    assert ["decode", "3", "x", "100", "1000000.0", "500000.0"] in [x.split() for x in lines]
    assert lines[-1] == f"kept in {file}; engines use it from their next start"

    used = []
    monkeypatch.setattr(attention, "attend_items", lambda *args: used.append(args[-1](SHAPE)))
    monkeypatch.setattr(attention, "merge_partials", lambda *args: None)
    ragged = steps().ragged()
    ragged.run(load_ops("triton", measured_tiles("Test card")).paged_attention)
    ragged.run(load_ops("triton").paged_attention)
    assert used == [kept[SHAPE], default_tiles(SHAPE)]


def test_a_model_is_measured_by_its_config():
    config = {
        "architectures": ["MistralForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "vocab_size": 99, "max_position_embeddings": 512, "sliding_window": 128,
    }  # fmt: skip
    assert shape_of(config, 64) == (4, 2, 16, 2, 2, 64)
    assert shape_of(config, 32) == (4, 2, 16, 2, 2, 32)
