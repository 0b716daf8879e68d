"""FlashInfer's partial results, as it documents them, through our own merge kernel."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cpu"))
from paged_prefill import PagedPrefill
from steps import TOLERANCE, make_step

from ramify.kernels.flashinfer.attention import FlashInferAttention
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.triton.merge import merge_partials


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_log_sums_are_what_the_merge_takes(dtype):
    """A trunk, pieces of long runs, a chunk: log-sums in another base would weigh them wrong."""
    kinds = [(120, 1), (90, 1), (700, 1), (100, 9)]
    step = make_step(kinds, 4, 2, 16, dtype, page=16, trunk=5, splits=8)
    assert step.work.n_partials > 4
    attention = FlashInferAttention(PagedPrefill, merge_partials).paged_attention
    near = TOLERANCE[dtype]
    torch.testing.assert_close(step.run(attention), step.run(reference), atol=near, rtol=near)
