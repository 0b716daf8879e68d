"""What is measured on a GPU, with the kernels that are measured there: every call is one they take.

Times of the interpreter mean nothing; that a call is refused, or reads beyond its numbers, would be
seen on a GPU only.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_kernels
import gpu_parts
from gpu_shapes import SHAPES, Shape

from ramify.srt.execution.device import Device

TINY = Shape(2, 64, 96, 4, 2, 16, 67, True)
CPU = Device(torch.device("cpu"))


@pytest.mark.parametrize("part", ["attention", "kernels"])
def test_every_call_is_one_that_the_kernels_take(part, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "MOE", {"experts": 4, "top": 2, "hidden": 2048, "middle": 768})
    monkeypatch.setattr("gpu_timing.elapsed_us", lambda *_: 20.0)  # the call before it is enough
    shapes = dict.fromkeys(SHAPES, TINY)
    with torch.inference_mode():
        made = list(gpu_parts.PARTS[part](CPU, "triton", shapes, 256))
        figures = [figure for case in made for figure in case.run()]
    assert len(figures) >= len(made) > 20
    assert all(figure.value > 0 for figure in figures)
