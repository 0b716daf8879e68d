"""The tests of tests/gpu, run on a CPU: an error in one of them would cost time on a GPU.

Kernels are interpreted and engines run plain torch, at small sizes; see `tests/gpu/place.py`. The
run goes through the set-up of `make gpu-check`, so what it is told of each test is tried as well.
"""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_check
from gpu_children import watch

ON_A_GPU_ONLY = {
    "test_a_recorded_launch_keeps_its_descriptors",
    "test_a_tensor_on_the_cpu_is_refused",
    "test_bfloat16_answers_and_takes_the_memory_that_it_may",
    "test_masks_beyond_two_to_the_31_numbers",
    "test_pools_of_more_than_two_to_the_31_numbers",
}
# Of the clock of a GPU, its matrix units and its library: nothing of them can be interpreted.
FILES_FOR_A_GPU_ONLY = {"test_deterministic_gpu.py", "test_flashinfer.py", "test_tuning.py"}


@pytest.mark.timeout(1500)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_every_test_for_a_gpu_runs_interpreted(tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_GPU_TESTS", "interpreted")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    part = gpu_check.Part("tests", "", 1400, 600, ())
    children = gpu_check.test_children(part, tmp_path, None)
    assert len(children) >= 8
    outcomes = {}

    def hear(_child, said):
        if "end" in said:
            outcomes[said["end"]] = said["outcome"], said["words"]

    log = tmp_path / "log"
    with log.open("wb") as file:
        late = watch(children, part.seconds, 1, hear, file)
    bad = {name: words for name, (outcome, words) in outcomes.items() if outcome == "failed"}
    assert not bad, log.read_text()[-4000:]
    assert late == []
    skipped = [name for name, (outcome, _) in outcomes.items() if outcome == "skipped"]
    here = [name for name in skipped if Path(name.split("::")[0]).name not in FILES_FOR_A_GPU_ONLY]
    assert {name.rpartition("::")[2].partition("[")[0] for name in here} == ON_A_GPU_ONLY
    assert Counter(outcome for outcome, _ in outcomes.values())["passed"] > 130
