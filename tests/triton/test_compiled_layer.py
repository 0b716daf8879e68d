"""How many kernels one decoder layer launches: in a small model launches are what a step costs."""

import torch
from compile_only import recording, table

from ramify.kernels.dispatch import load_ops
from ramify.kernels.work_list import make_work_list
from ramify.srt.attention.inputs import StepInputs
from ramify.srt.attention.work_list import QueryRun, plan_items
from ramify.srt.layers.decoder_layer import DecoderLayer, LayerShape

HEADS, KV_HEADS, DIM, PAGE, WIDTH, INNER = 6, 2, 64, 64, 384, 512
OPS = load_ops("triton")


def layer():
    def linear(out_features, in_features):
        return OPS.pack_linear(torch.zeros(out_features, in_features).bfloat16(), None)

    norm = torch.zeros(WIDTH).bfloat16()
    head_norm = torch.zeros(DIM).bfloat16()
    return DecoderLayer(
        shape=LayerShape(HEADS, DIM, 1e-5),
        attention_norm=norm,
        qkv=linear((HEADS + 2 * KV_HEADS) * DIM, WIDTH),
        q_norm=head_norm,
        k_norm=head_norm,
        o=linear(WIDTH, HEADS * DIM),
        mlp_norm=norm,
        gate_up=linear(2 * INNER, WIDTH),
        down=linear(WIDTH, INNER),
    )


def names_of_launches(runs, **plan):
    """The kernels of one layer for a step with these query runs."""
    planned = plan_items(runs, PAGE, **plan)
    positions = [p for run in runs for p in range(run.start, run.start + run.n_rows)]
    work = make_work_list(planned.items, planned.rows, positions, planned.pages)
    tokens = len(positions)
    ids = torch.zeros(tokens, dtype=torch.int64)
    inputs = StepInputs(ids, torch.tensor(positions, dtype=torch.int32), ids, work)
    pools = torch.zeros(2, 9, KV_HEADS, PAGE, DIM).bfloat16()
    x, residual = torch.zeros(2, tokens, WIDTH).bfloat16()
    with recording(90) as launches:
        layer().forward(OPS, x, residual, inputs, torch.zeros(999, DIM), (pools[0], pools[1]))
    print("\n" + table(launches))
    assert all(launch.spills == 0 for launch in launches)
    return [launch.name.removesuffix("_kernel") for launch in launches]


def test_a_decode_step():
    runs = [QueryRun(0, 1, 70, (1, 2)), QueryRun(1, 1, 30, (3,))]
    assert names_of_launches(runs) == [
        "rms_norm", "rope_write_kv", "attention", "rms_norm", "silu_mul"]  # fmt: skip


def test_a_decode_step_that_shares_a_trunk():
    runs = [QueryRun(i, 1, 200, (1, 2, 3, 4 + i)) for i in range(2)]
    assert names_of_launches(runs) == [
        "rms_norm", "rope_write_kv", "attention", "merge", "rms_norm", "silu_mul"]  # fmt: skip


def test_a_step_of_everything():
    runs = [QueryRun(i, 1, 200, (1, 2, 3, 4 + i)) for i in range(2)]
    runs.append(QueryRun(2, 50, 200, (1, 2, 3, 8)))
    launched = names_of_launches(runs)
    assert launched.count("attention") == 2  # small tiles and large ones
    assert len(launched) == 7
