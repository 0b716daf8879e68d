"""Linear layers: our panels, or oneDNN where the CPU has matrix units (AMX), which we do not use.

Panels are up to twice as fast as oneDNN on few rows and equal on many, and the bits of a row do
not depend on its batch; oneDNN computes a single row in another order than several.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ramify.kernels.cpu.library import library, pointer
from ramify.kernels.cpu.threads import threads
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
    wide = weight.dtype is torch.float32
    if not wide and torch.cpu._is_amx_tile_supported():
        packed = pack_onednn(weight, bias)
        if packed is not None:
            return packed
    if wide or in_features % 2 == 0:
        return PackedLinear(_panels(weight), bias, in_features, out_features, "panels")
    return PackedLinear(weight, bias, in_features, out_features, "plain")


def pack_onednn(weight: Tensor, bias: Tensor | None) -> PackedLinear | None:
    """The weight in oneDNN's layout, proven by one multiplication; None if this machine cannot."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    out_features, in_features = weight.shape
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_ROWS)
        _multiply_onednn(weight.new_zeros(1, in_features), packed, None)
    except RuntimeError:
        return None
    return PackedLinear(packed, bias, in_features, out_features, "onednn")


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight^T + bias.   x [T, in] -> [T, out]"""
    check_linear(x, packed.weight, packed.in_features)
    if packed.layout == "panels":
        return _multiply_panels(x, packed)
    if packed.layout == "plain":
        return F.linear(x, packed.weight, packed.bias)
    return _multiply_onednn(x, packed.weight, packed.bias)


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
        threads(),
    )
    return out


def _multiply_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
