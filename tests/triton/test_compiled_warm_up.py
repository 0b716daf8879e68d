"""After the warm-up nothing is left to compile: no step of a real run launches a new kernel."""

import sys
from pathlib import Path

import pytest
import torch
from compile_only import recording

sys.path.insert(0, str(Path(__file__).parents[1] / "cpu"))
from test_gpu_runner import Run, gpu_runner, tiny_model

SIZES = {"n_pages": 60, "page_size": 64}


def kernels(launches):
    """The binaries of each kernel."""
    names = {launch.name for launch in launches}
    return {name: {x.cubin for x in launches if x.name == name} for name in names}


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_launches_what_was_compiled_for_it(deterministic):
    torch.manual_seed(0)
    model = tiny_model("qwen3", "triton", torch.bfloat16, rows_apart=deterministic)
    options = {"stored": torch.bfloat16, "deterministic": deterministic}
    with recording(90) as before:
        runner, _ = gpu_runner(model, **SIZES, most=9, graph_rows=4, **options)
        runner.warm_up(1100)
    with recording(90) as launches:
        for seed in range(2):
            run = Run(runner, seed, overlap=False, **SIZES, most=9, step_tokens=1100)
            run.answers()  # of numbers that nobody has computed
    ready, used = kernels(before), kernels(launches)
    assert len(used) > 5
    for name, binaries in used.items():
        assert binaries <= ready[name], name
