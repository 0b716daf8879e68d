"""One NVIDIA GPU checked from end to end: is it right, and how near to the limits does it run?

    python benchmarks/gpu_check.py [--json FILE] [--skip-tests] [--only PART]

1. tests     tests/gpu: every kernel against its twin, the engine against transformers
2. kernels   time of one call against bytes / BANDWIDTH or operations / FLOPS
3. engine    decode steps of random weights of real shapes, at several batches and contexts, and
             prefill, against the same floors: no step can be shorter than its reads
4. trunk     requests that share a prompt, through the scheduler, with the cache and without
5. peer      transformers' continuous batching, the same shape and lengths, in its own process

The floors are for an H200: 4.3 TB/s and 790 TFLOP/s in bf16 are what it reaches, not what is
printed on it. Ends with exit code 2, and one line, where there is no GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from gpu_parts import SHAPES, Rig, decode_ms, floor_ms, prefill_floor_ms, prefill_ms, shared_trunk
from gpu_parts import kernel_rows as kernel_table
from measure import add

from ramify.srt.errors import ConfigError
from ramify.srt.execution.device import Device, open_device

HERE = Path(__file__).parent
PARTS = ("tests", "kernels", "engine", "peer")
TEST_S, PEER_S = 240, 120  # at most
BATCHES, CONTEXTS = (1, 32, 256), (1024, 4096)
PEER_SHAPE, PEER_BATCH, PEER_PROMPT, PEER_NEW = "Qwen2.5-0.5B", 32, 512, 64


def main() -> int:
    """Returns 1 when a test failed, 2 without a GPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", default=None, help="file for the figures")
    parser.add_argument("--only", choices=PARTS, default=None)
    parser.add_argument("--skip-tests", action="store_true")
    options = parser.parse_args()
    try:
        device = open_device("cuda")
    except ConfigError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    parts = [options.only] if options.only else [*PARTS]
    if options.skip_tests:
        parts.remove("tests")
    figures: dict[str, float | str] = {
        "gpu": torch.cuda.get_device_name(device.torch_device),
        "torch": torch.__version__,
    }
    for name, value in figures.items():
        add(name, value)
    for part in parts:
        print(f"--- {part}", flush=True)
        for name, value in RUN[part](device):
            figures[name] = value
            add(name, value)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))
    return 1 if figures.get("tests", "passed") != "passed" else 0


def tests(_device: Device):
    command = [sys.executable, "-m", "pytest", str(HERE.parent / "tests" / "gpu"), "-m", "gpu"]
    yield "tests", _outcome([*command, "-q", "-x"], TEST_S)


def _outcome(command: list[str], seconds: float) -> str:
    """`passed`, or what the command ended with; its words go to our own output."""
    try:
        code = subprocess.run(command, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"not done after {seconds} s"
    return "passed" if code == 0 else f"failed with exit code {code}"


def kernels(device: Device):
    for name, us, floor in kernel_table(device, "triton"):
        yield f"{name}, us", us
        yield f"{name}, share of the limit", floor / us


def engine(device: Device):
    for name, shape in SHAPES.items():
        rig = Rig.make(shape, device, "triton", max_rows=max(BATCHES), longest=max(CONTEXTS) + 256)
        for batch in BATCHES:
            for context in CONTEXTS:
                if not rig.holds(batch, context):
                    yield f"{name} B={batch} ctx={context}", "does not fit the memory"
                    continue
                ms, floor = decode_ms(rig, batch, context), floor_ms(shape, batch, context)
                yield f"{name} B={batch} ctx={context}, tok/s", batch / ms * 1e3
                yield f"{name} B={batch} ctx={context}, share of the limit", floor / ms
        for n in CONTEXTS:
            ms, floor = prefill_ms(rig, n), prefill_floor_ms(shape, n)
            yield f"{name} prefill {n}, tok/s", n / ms * 1e3
            yield f"{name} prefill {n}, share of the limit", floor / ms
        with_cache, without = (shared_trunk(rig, reuse=reuse) for reuse in (True, False))
        yield f"{name} 64 requests of one trunk of 2048, tok/s", with_cache
        yield f"{name} the same without the cache, tok/s", without
        del rig
        torch.cuda.empty_cache()


def peer(device: Device):
    rig = Rig.make(SHAPES[PEER_SHAPE], device, "triton", max_rows=PEER_BATCH, longest=1024)
    name = f"{PEER_SHAPE} B={PEER_BATCH} {PEER_PROMPT}+{PEER_NEW}"
    lengths = {"n": PEER_BATCH, "trunk": 0, "own": PEER_PROMPT, "new": PEER_NEW}
    ours = shared_trunk(rig, reuse=True, **lengths)
    yield f"{name}, tok/s", ours
    del rig
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "peer"
        numbers = [str(n) for n in (PEER_BATCH, PEER_PROMPT, PEER_NEW)]
        script = str(HERE / "gpu_peer.py")
        outcome = _outcome([sys.executable, script, PEER_SHAPE, *numbers, str(told)], PEER_S)
        if outcome != "passed":
            yield "transformers continuous batching", outcome
            return
        theirs = float(told.read_text())
    yield f"transformers continuous batching {name}, tok/s", theirs
    yield "ratio", ours / theirs


RUN = {"tests": tests, "kernels": kernels, "engine": engine, "peer": peer}

if __name__ == "__main__":
    sys.exit(main())
