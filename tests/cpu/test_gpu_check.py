"""The check of a GPU, as far as a CPU can run it: floors, measurements on a tiny shape, refusal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ramify.srt.execution.device import Device

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_parts as parts

BENCHMARKS = Path(parts.__file__).parent
CPU = Device(torch.device("cpu"))
TINY = parts.Shape(2, 64, 96, 4, 2, 16, 211, True)


def test_floors_are_those_of_the_models():
    """Milliseconds worked out by hand from the shapes, for 4.3 TB/s and 790 TFLOP/s."""
    llama, small = parts.SHAPES["Llama-3.1-8B"], parts.SHAPES["Qwen2.5-0.5B"]
    assert parts.floor_ms(llama, 1, 1024) == pytest.approx(3.52, abs=0.01)
    assert parts.floor_ms(llama, 32, 4096) == pytest.approx(7.49, abs=0.01)
    assert parts.floor_ms(small, 256, 1024) == pytest.approx(1.07, abs=0.01)
    assert parts.prefill_floor_ms(llama, 4096) == pytest.approx(77.9, abs=0.1)


def test_what_is_measured_runs_on_a_tiny_shape():
    rig = parts.Rig.make(
        TINY, CPU, "reference", max_rows=4, longest=512, n_pages=32, step_tokens=64
    )
    assert rig.holds(4, 400)
    assert not rig.holds(4, 500)
    assert parts.decode_ms(rig, 3, 100, steps=3) > 0
    assert parts.decode_ms(rig, 4, 60, steps=2) > 0  # all rows are free again
    assert parts.prefill_ms(rig, 150, rounds=2) > 0
    for reuse in (True, False):
        assert parts.shared_trunk(rig, reuse=reuse, n=6, trunk=70, own=5, new=4) > 0


def test_every_kernel_is_called():
    rows = list(parts.kernel_rows(CPU, "reference", TINY, scale=256))
    assert len({name for name, _, _ in rows}) == len(rows) - 2  # two sizes fall together here
    assert all(us > 0 and floor > 0 for _, us, floor in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_without_a_gpu_it_says_so_in_one_line():
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent)))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("gpu_check: device cuda: no NVIDIA GPU can be used here")
    assert done.stderr.count("\n") == 1
