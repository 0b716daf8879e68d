"""Attention over a work list by FlashInfer's paged prefill, and our own merge of partial results.

once a step     host: requests_of(work) -> two batches, causal and not -> a plan of the library each
in each layer   rows of q gathered -> run -> results of tokens, and partial results with log-sums
                merge, as after our own stage 1: the library's log-sums are in base 2 too

A plan belongs to a list, so it is kept until another one comes. It is made from integers on the
host: `WorkList.on_host` has them; without it they are read back, which waits for the GPU.

The library copies a plan to the GPU from pinned memory that its next plan overwrites. A step may be
planned before the one before it has begun. So wrappers take turns, and an event says when the copy
of the last plan of a wrapper is done. A wrapper stays with the kernels that its first plan chose by
the types of numbers, so each pair of types has wrappers of its own.

Numerics: partial results are rounded to the type of q before they are merged. Ours are not.
"""

import importlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.flashinfer.requests import Requests, requests_of
from ramify.kernels.shapes import check_attention
from ramify.kernels.work_list import WorkList

STEPS_IN_FLIGHT = 2  # as many steps as a runner launches before it waits for the first
HEAD_DIMS = (64, 128, 256)  # those that the library's kernels have on all cards
MAX_GROUP = 16
# Where it divides long runs of keys, the library keeps fp32 results of 128 rows by 128 channels, or
# 64 by 256, for two programs on each processor and each query head of a group: 298 MiB with 148
# processors and the largest group.
WORKSPACE_BYTES = 384 << 20
Merge = Callable[[Tensor, Tensor, WorkList, Tensor], None]


class Wrapper(Protocol):
    """What is used of flashinfer.BatchPrefillWithPagedKVCacheWrapper."""

    def plan(self, *args: Any, **kwargs: Any) -> None: ...

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], **kwargs: Any) -> Any: ...


@dataclass
class _Wrappers:
    causal: Wrapper
    other: Wrapper
    planned: torch.cuda.Event | None = None  # when the copies of their last plans are done


@dataclass(frozen=True)
class _Batch:
    """Planned requests. Their rows: `n_direct` results of tokens, then partial results."""

    wrapper: Wrapper
    tokens: Tensor | None  # [rows] int64 in q; None: all of q, in order, and all of it direct
    partials: Tensor  # [rows - n_direct] int64
    n_direct: int


@dataclass(frozen=True)
class _Step:
    """The plan of one work list; `key` is what else it depends on."""

    work: weakref.ref[WorkList]
    key: tuple[Any, ...]
    batches: tuple[_Batch, ...]
    partial: Tensor  # [n_partials, HQ, D] fp32: zero where a row sees none of its item's keys,
    lse: Tensor  # [n_partials, HQ] fp32: and -inf there. All layers use them, one after the other


class FlashInferAttention:
    """`paged_attention` of the table, by two wrappers for each of the steps in flight.

    `make_wrapper` makes the library's; `merge` is stage 2, as in `ramify.kernels.triton.merge`.
    """

    def __init__(self, make_wrapper: Callable[[], Wrapper], merge: Merge) -> None:
        self._make_wrapper = make_wrapper
        self._merge = merge
        self._turns: dict[tuple[torch.dtype, torch.dtype], Iterator[_Wrappers]] = {}
        self._step: _Step | None = None

    def paged_attention(
        self,
        q: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        work: WorkList,
        scale: float,
        options: AttentionOptions = PLAIN,
    ) -> Tensor:
        """softmax(scale * q k^T) v over the keys that the work list gives each token.

        q [T, HQ, D]   k_pool, v_pool [N, HK, P, D] -> [T, HQ, D]

        The pools may be fp8. A list that is changed in place keeps its plan: make a new one.
        Raises ValueError as `requests_of` does.
        """
        check_attention(q, k_pool, v_pool, work.positions, fp8=True)
        step = self._step
        key = (q.shape[1:], q.dtype, k_pool.shape[1:], k_pool.dtype, scale, options)
        if step is None or step.work() is not work or step.key != key:
            step = self._step = self._plan(q, k_pool, work, scale, options, key)
        out = torch.empty_like(q)
        v_scale = options.v_scale if options.v_scale != 1.0 else None
        for batch in step.batches:
            _run(batch, q, (k_pool, v_pool), v_scale, out, step)
        self._merge(step.partial, step.lse, work, out)
        return out

    def _plan(
        self,
        q: Tensor,
        k_pool: Tensor,
        work: WorkList,
        scale: float,
        options: AttentionOptions,
        key: tuple[Any, ...],
    ) -> _Step:
        pair = self._next_pair((q.dtype, k_pool.dtype))
        if pair.planned is not None:
            pair.planned.synchronize()
        common = {
            "sm_scale": scale * options.k_scale,
            "logits_soft_cap": options.soft_cap or None,
            "q_data_type": q.dtype,
            "kv_data_type": k_pool.dtype,
        }
        batches = []
        causal, other = requests_of(work.on_host or work, k_pool.shape[2], options.window)
        if causal.tokens:
            left = options.window - 1 if options.window else -1
            _plan_requests(pair.causal, causal, q, k_pool, causal=True, window_left=left, **common)
            batches.append(_batch(pair.causal, causal, q))
        if other.tokens:
            _plan_requests(pair.other, other, q, k_pool, causal=False, **common)
            batches.append(_batch(pair.other, other, q))
        if q.is_cuda:
            pair.planned = torch.cuda.Event()  # type: ignore[no-untyped-call]
            pair.planned.record()
        heads, head_dim = q.shape[1:]
        partial = q.new_zeros((work.n_partials, heads, head_dim), dtype=torch.float32)
        lse = q.new_full((work.n_partials, heads), -torch.inf, dtype=torch.float32)
        return _Step(weakref.ref(work), key, tuple(batches), partial, lse)

    def _next_pair(self, types: tuple[torch.dtype, torch.dtype]) -> _Wrappers:
        if types not in self._turns:
            pairs = range(STEPS_IN_FLIGHT)
            make = self._make_wrapper
            self._turns[types] = cycle([_Wrappers(make(), make()) for _ in pairs])
        return next(self._turns[types])


def _plan_requests(
    wrapper: Wrapper, requests: Requests, q: Tensor, k_pool: Tensor, **options: Any
) -> None:
    _, kv_heads, page_size, head_dim = k_pool.shape
    lists = requests.qo_indptr, requests.kv_indptr, requests.kv_indices, requests.last_page_len
    tensors = (torch.tensor(values, dtype=torch.int32) for values in lists)
    wrapper.plan(*tensors, q.shape[1], kv_heads, head_dim, page_size, **options)


def _batch(wrapper: Wrapper, requests: Requests, q: Tensor) -> _Batch:
    tokens = None
    if requests.partials or requests.tokens != list(range(len(q))):
        tokens = _uploaded(requests.tokens, q.device)
    return _Batch(wrapper, tokens, _uploaded(requests.partials, q.device), requests.n_direct)


def _uploaded(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def _run(
    batch: _Batch,
    q: Tensor,
    pools: tuple[Tensor, Tensor],
    v_scale: float | None,
    out: Tensor,
    step: _Step,
) -> None:
    """Change the rows of `out` that need no merge, and the partial results of the others."""
    if batch.tokens is None:
        batch.wrapper.run(q, pools, v_scale=v_scale, out=out)
        return
    result, lse = batch.wrapper.run(q[batch.tokens], pools, v_scale=v_scale, return_lse=True)
    n = batch.n_direct
    out.index_copy_(0, batch.tokens[:n], result[:n])
    step.partial.index_copy_(0, batch.partials, result[n:].float())
    step.lse.index_copy_(0, batch.partials, lse[n:])


def unsupported(dtype: torch.dtype, head_dim: int, group: int) -> str | None:
    """Why the library cannot do attention of this kind, or None if it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}"
    if head_dim not in HEAD_DIMS:
        return f"its head dims are {', '.join(map(str, HEAD_DIMS))}, the model's is {head_dim}"
    if group > MAX_GROUP:
        return f"{group} query heads share one K/V head, at most {MAX_GROUP} may"
    return None


def open_attention() -> FlashInferAttention:
    """FlashInfer on the current GPU, with its workspace there.

    Raises ModuleNotFoundError if flashinfer, or something that it needs, is not installed. Kernels
    are compiled when the first list is planned.
    """
    library = importlib.import_module("flashinfer")
    from ramify.kernels.triton.merge import merge_partials

    device = torch.device("cuda", torch.cuda.current_device())
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    return FlashInferAttention(
        lambda: library.BatchPrefillWithPagedKVCacheWrapper(workspace, kv_layout="HND"),
        merge_partials,
    )
