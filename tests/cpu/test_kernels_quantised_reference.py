"""Quantised linears in plain torch: formats against numbers packed by hand, products against fp32.

These twins are the specification of the GPU kernels, so they are held to the definition itself.
"""

import pytest
import torch

from ramify.kernels.quantised_linear import FP8, Fp8Blocks, Fp8Rows, Int4Linear
from ramify.kernels.reference import quantised as q


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def word(*nibbles):
    """Eight nibbles, the first in the lowest bits, as the int32 that holds those bits."""
    value = sum(nibble << 4 * i for i, nibble in enumerate(nibbles))
    return value - 2**32 if value >= 2**31 else value


def int32(rows):
    return torch.tensor(rows, dtype=torch.int32)


def test_awq_words_hold_columns_in_the_order_0_2_4_6_1_3_5_7():
    """One row of weights 0..7, then 15..8: the second word is negative as an int32."""
    up, down = word(0, 2, 4, 6, 1, 3, 5, 7), word(15, 13, 11, 9, 14, 12, 10, 8)
    assert up > 0 > down
    qweight = int32([[up, down]] * 7 + [[down, up]])
    qzeros = int32([[word(*range(8)), word(*[3] * 8)]])
    packed = q.unpack_awq(qweight, qzeros, torch.full((1, 16), 2.0))
    assert packed.zero.tolist() == [[0, 4, 1, 5, 2, 6, 3, 7, *[3] * 8]]
    weight = q.dequantise_int4(packed, torch.float32)
    rows = torch.tensor([[*range(8), *range(15, 7, -1)]] * 7 + [[*range(15, 7, -1), *range(8)]])
    assert torch.equal(weight, (rows - packed.zero) * 2.0)


def test_gptq_words_hold_rows_in_order_and_zeros_less_one():
    qweight = int32([[word(*range(8))] * 8, [word(*range(15, 7, -1))] * 8])
    qzeros = int32([[word(*range(8))], [word(15, *[7] * 7)]])
    scales = torch.stack((torch.ones(8), torch.full((8,), 0.5)))
    packed = q.unpack_gptq(qweight, qzeros, scales)
    # a zero of 0 is stored as 15: one less, in four bits
    assert packed.zero.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [0, 8, 8, 8, 8, 8, 8, 8]]
    weight = q.dequantise_int4(packed, torch.float32)
    assert torch.equal(weight[:8], torch.arange(8.0)[:, None] - packed.zero[0])
    assert torch.equal(weight[8:], (torch.arange(15.0, 7, -1)[:, None] - packed.zero[1]) * 0.5)


def test_gptq_rows_out_of_order_meet_their_own_inputs():
    """With act-order, row k belongs to group g_idx[k]; the sum over k may not notice the move."""
    qweight = torch.randint(-(2**31), 2**31, (4, 16)).int()
    qzeros = torch.randint(-(2**31), 2**31, (2, 2)).int()
    scales, g_idx = torch.rand(2, 16), torch.tensor([1, 0] * 16)
    packed = q.unpack_gptq(qweight, qzeros, scales, g_idx)
    x = torch.randn(3, 32)
    nibbles = (qweight[:, None] >> torch.arange(0, 32, 4).int()[:, None] & 15).view(32, 16)
    zero = ((qzeros[:, :, None] >> torch.arange(0, 32, 4).int() & 15).view(2, 16) + 1) & 15
    weight = (nibbles - zero[g_idx]) * scales[g_idx]
    torch.testing.assert_close(q.linear_int4(x, packed), x @ weight, rtol=1e-4, atol=1e-3)
    plain = q.unpack_gptq(qweight, qzeros, scales, torch.arange(32) // 16)
    assert plain.order is None, "groups of neighbours need no moving"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_int4_is_the_product_with_the_dequantised_weight(dtype):
    nibbles = torch.randint(-(2**31), 2**31, (8, 12)).int()
    zero = torch.randint(0, 16, (2, 12)).to(torch.uint8)
    scale, bias = torch.rand(2, 12).to(dtype), torch.randn(12).to(dtype)
    packed = Int4Linear(nibbles, scale, zero, bias)
    x = torch.randn(5, 64).to(dtype)
    weight = q.dequantise_int4(packed, torch.float64)
    out = q.linear_int4(x, packed)
    assert out.dtype is dtype
    exact = x.double() @ weight + bias.double()
    assert (out.double() - exact).abs().max() < 0.02 * exact.abs().max()


def test_rows_keep_their_scale_and_lose_an_eighth_at_most():
    x = torch.randn(6, 50) * torch.logspace(-6, 6, 6)[:, None]
    x[3] = 0
    value, scale = q.quantise_rows(x)
    assert scale[3] == 1
    assert (value.float().abs().amax(1)[[0, 1, 2, 4, 5]] == 448).all()
    error = (value.float() * scale[:, None] - x).abs()
    assert (error <= x.abs() / 16 + scale[:, None] * 2**-10).all()


@pytest.mark.parametrize("width", [1, 128, 200])
def test_groups_are_128_columns_and_the_last_may_be_short(width):
    x = torch.randn(3, width)
    x[:, :1] *= 1000  # an outlier spoils the numbers of its own group only
    value, scale = q.quantise_groups(x)
    assert value.shape == x.shape
    assert scale.shape == (3, -(-width // 128))
    for group in range(scale.shape[1]):
        part = slice(group * 128, group * 128 + 128)
        mine, its_scale = q.quantise_rows(x[:, part].contiguous())
        assert torch.equal(value[:, part].float(), mine.float())
        assert torch.equal(scale[:, group], its_scale)


def test_fp8_rows_against_the_product_of_what_was_quantised():
    x, bias = torch.randn(4, 48), torch.randn(32)
    weight, weight_scale = q.quantise_rows(torch.randn(32, 48))
    value, scale = q.quantise_rows(x)
    out = q.linear_fp8_rows(value, scale, Fp8Rows(weight, weight_scale, bias), torch.float32)
    wide = (value.double() * scale[:, None]) @ (weight.double() * weight_scale[:, None]).T + bias
    torch.testing.assert_close(out.double(), wide, rtol=1e-5, atol=1e-4)
    assert (out - (x @ (weight.float() * weight_scale[:, None]).T + bias)).abs().max() < 1.0


def test_fp8_blocks_scale_each_block_also_at_ragged_edges():
    x, weight = torch.randn(3, 200), torch.randn(150, 200).to(FP8)
    scale = torch.rand(2, 2) + 0.5
    out = q.linear_fp8_blocks(x, Fp8Blocks(weight, scale, None))
    value, x_scale = q.quantise_groups(x)
    expected = torch.zeros(3, 150)
    for n in range(150):
        for k in range(200):
            w = weight[n, k].float() * scale[n // 128, k // 128]
            expected[:, n] += value[:, k].float() * x_scale[:, k // 128] * w
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)


def test_silu_mul_fp8_is_the_composition():
    gate_up = torch.randn(4, 64).bfloat16()
    value, scale = q.silu_mul_fp8(gate_up)
    gate, up = gate_up.float().chunk(2, -1)
    exact = gate * torch.sigmoid(gate) * up
    torch.testing.assert_close(value.float() * scale[:, None], exact, rtol=0.08, atol=2e-2)


def test_wrong_sizes_are_named():
    x = torch.randn(2, 64)
    ok = Int4Linear(torch.zeros(8, 4).int(), torch.ones(2, 4), torch.zeros(2, 4).byte(), None)
    with pytest.raises(ValueError, match="x must be a contiguous"):
        q.linear_int4(x[:, :32].contiguous(), ok)
    uneven = Int4Linear(ok.nibbles, torch.ones(3, 4), torch.zeros(3, 4).byte(), None)
    with pytest.raises(ValueError, match="do not make 3 groups"):
        q.linear_int4(x, uneven)
    blocks = Fp8Blocks(torch.zeros(130, 64).to(FP8), torch.ones(1, 1), None)
    with pytest.raises(ValueError, match="weight scale must be"):
        q.linear_fp8_blocks(x, blocks)
    with pytest.raises(ValueError, match="with 2 axes"):
        q.quantise_rows(x[0])
