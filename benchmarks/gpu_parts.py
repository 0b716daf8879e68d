"""The parts of gpu_check.py that measure our own code, as cases; each part in its own process.

python benchmarks/gpu_parts.py PART FILE     started by gpu_check.py; writes figures into FILE
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from gpu_lines import Case, run_cases
from gpu_shapes import LARGE, SHAPES, Shape

from ramify.srt.execution.device import Device, open_device

Shapes = Mapping[str, Shape]
Make = Callable[[Device, str, Shapes, int], Iterator[Case]]

# What a part needs is imported when it is asked for: another part may run without it.


def attention(device: Device, backend: str, shapes: Shapes, scale: int) -> Iterator[Case]:
    import gpu_attention

    return gpu_attention.cases(gpu_attention.both_shapes(device, backend, shapes, scale))


def kernels(device: Device, backend: str, shapes: Shapes, scale: int) -> Iterator[Case]:
    import gpu_attention
    import gpu_kernels

    return gpu_kernels.cases(gpu_attention.both_shapes(device, backend, shapes, scale))


def flashinfer(device: Device, backend: str, shapes: Shapes, scale: int) -> Iterator[Case]:
    import gpu_flashinfer
    from gpu_attention import Bench

    bench = Bench(device, backend, LARGE, shapes[LARGE], scale)
    return gpu_flashinfer.cases(bench, importlib.import_module("flashinfer"))


def engine(name: str) -> Make:
    def cases(device: Device, backend: str, shapes: Shapes, _scale: int) -> Iterator[Case]:
        from gpu_engine import EngineCases

        return EngineCases(device, backend, name, shapes[name]).cases()

    return cases


PARTS: dict[str, Make] = {
    "attention": attention,
    "kernels": kernels,
    "flashinfer": flashinfer,
    **{f"engine {name}": engine(name) for name in SHAPES},
}


def run(
    part: str, path: Path, device: Device, backend: str, shapes: Shapes = SHAPES, scale: int = 1
) -> None:
    """Write the figures of a part into a file; `scale` divides what is measured, for a CPU."""
    torch.manual_seed(0)
    with torch.inference_mode():
        run_cases(PARTS[part](device, backend, shapes, scale), path)


def main() -> None:
    run(sys.argv[1], Path(sys.argv[2]), open_device("cuda"), "triton")


if __name__ == "__main__":
    main()
