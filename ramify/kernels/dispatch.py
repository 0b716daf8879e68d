"""Who is called: the table of implementations, imported when a backend is first asked for."""

import importlib
import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Literal, cast

from ramify.kernels.ops import Ops
from ramify.kernels.triton.tile_table import TilesOf

Backend = Literal["auto", "cpu", "triton", "flashinfer", "reference"]
logger = logging.getLogger(__name__)

_REFERENCE = "ramify.kernels.reference."
_CPU = "ramify.kernels.cpu."
_TRITON = "ramify.kernels.triton."
TABLE = {
    "pack_linear": {
        "reference": _REFERENCE + "linear:pack_linear",
        "cpu": _CPU + "linear:pack_linear",
        "triton": _REFERENCE + "linear:pack_linear",  # the vendor's products, through torch
    },
    "linear": {
        "reference": _REFERENCE + "linear:linear",
        "cpu": _CPU + "linear:linear",
        "triton": _REFERENCE + "linear:linear",
    },
    "rms_norm": {
        "reference": _REFERENCE + "elementwise:rms_norm",
        "cpu": _CPU + "elementwise:rms_norm",
        "triton": _TRITON + "norms:rms_norm",
    },
    "add_rms_norm": {
        "reference": _REFERENCE + "elementwise:add_rms_norm",
        "cpu": _CPU + "elementwise:add_rms_norm",
        "triton": _TRITON + "norms:add_rms_norm",
    },
    "rope_write_kv": {
        "reference": _REFERENCE + "cache:rope_write_kv",
        "cpu": _CPU + "cache:rope_write_kv",
        "triton": _TRITON + "rope_cache:rope_write_kv",
    },
    "silu_mul": {
        "reference": _REFERENCE + "elementwise:silu_mul",
        "cpu": _CPU + "elementwise:silu_mul",
        "triton": _TRITON + "activation:silu_mul",
    },
    "mask_logits": {
        "reference": _REFERENCE + "logits:mask_logits",
        "cpu": _CPU + "logits:mask_logits",
        "triton": _TRITON + "logits:mask_logits",
    },
    "adjust_logits": {
        "reference": _REFERENCE + "sampling:adjust_logits",
        "cpu": _REFERENCE + "sampling:adjust_logits",
        "triton": _TRITON + "logits:adjust_logits",
    },
    "sample": {
        "reference": _REFERENCE + "sampling:sample",
        "cpu": _REFERENCE + "sampling:sample",
        "triton": _TRITON + "sampling:sample",
    },
    "paged_attention": {
        "reference": _REFERENCE + "attention:paged_attention",
        "cpu": _CPU + "attention:paged_attention",
        "triton": _TRITON + "attention:paged_attention",
    },
    "silu_mul_fp8": {
        "reference": _REFERENCE + "quantised:silu_mul_fp8",
        "cpu": _REFERENCE + "quantised:silu_mul_fp8",
        "triton": _TRITON + "activation:silu_mul_fp8",
    },
    "quantise_rows": {
        "reference": _REFERENCE + "quantised:quantise_rows",
        "cpu": _REFERENCE + "quantised:quantise_rows",
        "triton": _TRITON + "fp8:quantise_rows",
    },
    "linear_fp8_rows": {
        "reference": _REFERENCE + "quantised:linear_fp8_rows",
        "cpu": _REFERENCE + "quantised:linear_fp8_rows",
        "triton": _TRITON + "fp8:linear_fp8_rows",
    },
    "linear_fp8_blocks": {
        "reference": _REFERENCE + "quantised:linear_fp8_blocks",
        "cpu": _REFERENCE + "quantised:linear_fp8_blocks",
        "triton": _TRITON + "fp8:linear_fp8_blocks",
    },
    "linear_int4": {
        "reference": _REFERENCE + "quantised:linear_int4",
        "cpu": _REFERENCE + "quantised:linear_int4",
        "triton": _TRITON + "w4a16:linear_int4",
    },
    "route_experts": {
        "reference": _REFERENCE + "moe:route_experts",
        "cpu": _REFERENCE + "moe:route_experts",
        "triton": _TRITON + "moe:route_experts",
    },
    "moe_mlp": {
        "reference": _REFERENCE + "moe:moe_mlp",
        "cpu": _REFERENCE + "moe:moe_mlp",
        "triton": _TRITON + "moe:moe_mlp",
    },
}

# What stands in for an op that mixes rows, where no bit of a row may depend on those beside it.
ROWS_APART = {
    "linear": {
        "reference": _REFERENCE + "linear:linear_by_row",
        "triton": _TRITON + "linear:linear",
    },
}


IN_TILES = _TRITON + "attention:attention_in_tiles"


def load_ops(
    backend: Backend = "auto", tiles_of: TilesOf | None = None, *, rows_apart: bool = False
) -> Ops:
    """The operations of one backend; with `rows_apart` those that keep a row's bits to itself.

    Attention keeps them too, if each of its items is of one row. `rows_apart` is for `triton` and
    `reference`; the C++ kernels are what they are.

    `cpu` builds the C++ library if no cached one fits, and raises BuildError if that fails.
    `auto` is `cpu`, or after a failed build `reference` with a warning: slow beats absent.
    `triton` is for tensors on a GPU, and raises ModuleNotFoundError where triton is not installed.
    `flashinfer` is `triton` but for its attention, with a workspace of its own on the current GPU.
    `tiles_of` are the tiles of Triton's attention, where others than the default were measured.
    """
    if tiles_of is not None and backend != "triton":
        raise ValueError(f"tiles are for the backend triton, not {backend}")
    if backend == "flashinfer":
        from ramify.kernels.flashinfer.attention import open_attention

        own = {"backend": backend, "paged_attention": open_attention().paged_attention}
        return cast(Ops, SimpleNamespace(**vars(load_ops("triton")) | own))
    if backend in ("auto", "cpu"):
        backend = _cpu_or_reference(must=backend == "cpu")
    rows_apart = rows_apart and backend != "cpu"
    table = TABLE | ROWS_APART if rows_apart else TABLE
    functions = {op: _resolve(places[backend]) for op, places in table.items()}
    if tiles_of is not None:
        functions["paged_attention"] = partial(_resolve(IN_TILES), tiles_of)
    return cast(Ops, SimpleNamespace(backend=backend, rows_apart=rows_apart, **functions))


def _cpu_or_reference(must: bool) -> Backend:
    from ramify.kernels.cpu.build import BuildError
    from ramify.kernels.cpu.library import library

    try:
        library()
    except BuildError as error:
        if must:
            raise
        logger.warning("no C++ kernels, plain torch is used and is slower: %s", error)
        return "reference"
    return "cpu"


def _resolve(place: str) -> Callable[..., object]:
    module, name = place.split(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), name)
    return found
