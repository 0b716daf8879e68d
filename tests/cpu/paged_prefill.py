"""FlashInfer's paged prefill as its documentation has it, in plain torch: what a GPU would answer.

Only what we use: layout HND, an ordinary or a causal mask aligned at the last key, a window, a soft
cap, log-sums in base 2. It refuses what the library refuses or gets wrong without a word.
"""

import math

import torch

LN2 = math.log(2)


class PagedPrefill:
    """Stands for flashinfer.BatchPrefillWithPagedKVCacheWrapper."""

    def __init__(self):
        self.types = None
        self.plans = []  # (positional arguments, options) of each
        self.runs = []  # options of each

    def plan(self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len,
             num_qo_heads, num_kv_heads, head_dim_qk, page_size, *, causal, sm_scale,
             window_left=-1, logits_soft_cap=None, q_data_type, kv_data_type):  # fmt: skip
        lists = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        for tensor in lists:
            assert tensor.dtype is torch.int32
            assert tensor.device.type == "cpu"
        qo, kv, self.pages, last = (tensor.tolist() for tensor in lists)
        assert len(qo) == len(kv) == len(last) + 1 > 1
        assert kv[-1] == len(self.pages)
        self.requests = []
        for i, length in enumerate(last):
            assert 1 <= length <= page_size
            keys = (kv[i + 1] - kv[i] - 1) * page_size + length
            rows = qo[i + 1] - qo[i]
            assert keys >= (rows if causal else 1)
            assert rows >= 1
            self.requests.append((qo[i], rows, kv[i], keys))
        self.rows = qo[-1]
        self.shape = num_qo_heads, num_kv_heads, head_dim_qk, page_size
        types = q_data_type, kv_data_type
        assert self.types in (None, types), "the kernels of the first plan stay"
        self.types = types
        self.causal, self.scale = causal, sm_scale
        self.window, self.cap = window_left, logits_soft_cap or 0.0
        options = {
            "causal": causal, "sm_scale": sm_scale, "window_left": window_left,
            "logits_soft_cap": logits_soft_cap, "q_data_type": q_data_type,
            "kv_data_type": kv_data_type,
        }  # fmt: skip
        self.plans.append(((*lists, *self.shape), options))

    def run(self, q, paged_kv_cache, *, v_scale=None, out=None, return_lse=False):
        keys, values = paged_kv_cache
        heads, kv_heads, head_dim, page_size = self.shape
        assert q.shape == (self.rows, heads, head_dim)
        assert keys.shape[1:] == values.shape[1:] == (kv_heads, page_size, head_dim)
        assert (q.dtype, keys.dtype) == self.types
        self.runs.append({"v_scale": v_scale, "out": out, "return_lse": return_lse})
        result = torch.empty_like(q) if out is None else out
        lse = q.new_empty((self.rows, heads), dtype=torch.float32)
        for first, rows, first_page, n_keys in self.requests:
            k, v = (self._gather(pool, first_page, n_keys) for pool in (keys, values))
            mine = slice(first, first + rows)
            grouped = q[mine].float().view(rows, kv_heads, -1, head_dim)
            scores = torch.einsum("thgd,hnd->thgn", grouped, k) * self.scale
            if self.cap:
                scores = self.cap * torch.tanh(scores / self.cap)
            scores = scores.masked_fill(~self._seen(rows, n_keys)[:, None, None], -torch.inf)
            found = torch.einsum("thgn,hnd->thgd", scores.softmax(-1), v)
            result[mine] = (found * (v_scale or 1.0)).reshape(rows, heads, head_dim).to(q.dtype)
            lse[mine] = scores.logsumexp(-1).reshape(rows, heads) / LN2
        return (result, lse) if return_lse else result

    def _gather(self, pool, first_page, n_keys):
        n_pages = -(-n_keys // self.shape[3])
        numbers = self.pages[first_page : first_page + n_pages]
        return pool[numbers].transpose(0, 1).flatten(1, 2)[:, :n_keys].float()

    def _seen(self, rows, n_keys):
        """[rows, keys]: a row's place is counted from the last key, which the last row has."""
        place = torch.arange(n_keys - rows, n_keys)[:, None]
        key = torch.arange(n_keys)[None, :]
        seen = torch.ones(rows, n_keys, dtype=torch.bool)
        if self.causal:
            seen &= key <= place
        if self.window >= 0:
            seen &= key >= place - self.window
        return seen


def merge_base_2(partial, lse, work, out):
    """Stage 2 as the Triton kernel does it: log-sums in base 2."""
    for token in range(len(out)):
        begin, end = work.merge_indptr[token : token + 2].tolist()
        if begin < end:
            parts = work.merge_index[begin:end].long()
            weights = torch.softmax(lse[parts] * LN2, 0)
            out[token] = (partial[parts] * weights.unsqueeze(-1)).sum(0).to(out.dtype)
