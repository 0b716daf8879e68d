"""Linear layers by oneDNN on prepacked weights, or plain torch where oneDNN refuses them."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ramify.kernels.packed_linear import PackedLinear

# The batch size for which oneDNN lays out the weight. Packed for one row, it is twice as fast as
# plain torch on few rows (decode), and not slower than any other layout on many (prefill).
PACK_FOR_ROWS = 1

_reorder = torch.ops.mkldnn._reorder_linear_weight
_apply = partial(torch.ops.mkldnn._linear_pointwise, attr="none", scalars=[], algorithm="")


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """The weight in oneDNN's layout; as it is where oneDNN does not take it.   weight [out, in]"""
    out_features, in_features = weight.shape
    packed = _prepack(weight)
    return PackedLinear(
        weight if packed is None else packed, bias, in_features, out_features, packed is not None
    )


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight^T + bias.   x [T, in] -> [T, out]"""
    if not packed.prepacked:
        return F.linear(x, packed.weight, packed.bias)
    result: Tensor = _apply(x, packed.weight, packed.bias)
    return result


def _prepack(weight: Tensor) -> Tensor | None:
    """The reordered weight, proven by one multiplication; None if this machine cannot."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: Tensor = _reorder(weight.detach().contiguous(), PACK_FOR_ROWS)
        _apply(weight.new_zeros(1, weight.shape[1]), packed, None)
    except RuntimeError:
        return None
    return packed
