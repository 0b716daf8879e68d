"""Linear layers: our panels where the CPU multiplies the type well, else oneDNN, else plain torch.

Panels are up to twice as fast as oneDNN on few rows and equal on many, and a row's result has the
same bits in any batch, which no other choice here promises.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ramify.kernels.cpu.library import library, packs_bf16, pointer
from ramify.kernels.packed_linear import PackedLinear
from ramify.kernels.shapes import check_dense, check_float, check_linear

PANEL = 64  # outputs in a panel
# The batch size for which oneDNN lays out the weight. Packed for one row, it is twice as fast as
# plain torch on few rows (decode), and not slower than any other layout on many (prefill).
ONEDNN_ROWS = 1


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """The weight in the layout that `linear` reads fastest.   weight [out, in], bias [out]"""
    weight = weight.detach().contiguous()
    check_float("weight", weight, 2)
    out_features, in_features = weight.shape
    if bias is not None:
        check_dense("bias", bias, weight.dtype, out_features)
    if in_features % 2 == 0 and (weight.dtype is torch.float32 or packs_bf16()):
        return PackedLinear(_panels(weight), bias, in_features, out_features, "panels")
    packed = _onednn(weight)
    if packed is not None:
        return PackedLinear(packed, bias, in_features, out_features, "onednn")
    return PackedLinear(weight, bias, in_features, out_features, "plain")


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight^T + bias.   x [T, in] -> [T, out]"""
    check_linear(x, packed.weight, packed.in_features)
    if packed.layout == "panels":
        return _multiply_panels(x, packed)
    if packed.layout == "plain":
        return F.linear(x, packed.weight, packed.bias)
    return _apply_onednn(x, packed.weight, packed.bias)


def _panels(weight: Tensor) -> Tensor:
    out_features, in_features = weight.shape
    panels = weight.new_empty(-(-out_features // PANEL), in_features * PANEL)
    library()["pack_linear", weight.dtype](
        weight.data_ptr(), panels.data_ptr(), in_features, out_features
    )
    return panels


def _multiply_panels(x: Tensor, packed: PackedLinear) -> Tensor:
    tokens = x.shape[0]
    out = x.new_empty(tokens, packed.out_features)
    library()["linear", x.dtype](
        x.data_ptr(),
        packed.weight.data_ptr(),
        pointer(packed.bias),
        out.data_ptr(),
        tokens,
        packed.in_features,
        packed.out_features,
        torch.get_num_threads(),
    )
    return out


def _onednn(weight: Tensor) -> Tensor | None:
    """The reordered weight, proven by one multiplication; None if this machine cannot."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_ROWS)
        _apply_onednn(weight.new_zeros(1, weight.shape[1]), packed, None)
    except RuntimeError:
        return None
    return packed


def _apply_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
