"""Where the tests of this folder run: on a GPU, or interpreted on a CPU to try the tests.

Inputs are made on the CPU, moved, and what comes of them is compared there with the torch twins.
RAMIFY_GPU_TESTS=interpreted makes a CPU the place, and Triton's interpreter the compiler: sizes are
then the small ones, as a program takes a millisecond. `tests/triton` does so on every machine.
"""

import os

import guards
import pytest
import torch

INTERPRETED = os.environ.get("RAMIFY_GPU_TESTS") == "interpreted"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ONLY_CUDA = ("disable_cuda_graph", "cuda_graph_max_bs", "mem_fraction_static")

here_only = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"
    ),
]
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="says something of a GPU only")
needs_fp8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
    reason="this GPU has no e4m3",
)


def sized(real, small):
    """What is right for a GPU, or for the interpreter."""
    return small if INTERPRETED else real


def there(value):
    """A tensor, or a record or list of such, on the place."""
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, list | tuple):
        return type(value)(there(item) for item in value)
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(**{name: there(item) for name, item in vars(value).items()})
    return value


def guarded(x):
    """`guards.guarded` on the place."""
    return guards.guarded(x, DEVICE)


def inside(x):
    """The numbers of `guarded`, where nothing is to be written."""
    return guards.inside(x, DEVICE)


def bits(x):
    """Numbers to be compared bit for bit, NaN and all."""
    return x.cpu().contiguous().view(torch.uint8)


def assert_near(mine, twin, tolerance):
    """Equal up to a share of the largest number of the twin."""
    assert mine.dtype is twin.dtype
    limit = tolerance * float(twin.abs().max())
    torch.testing.assert_close(mine.cpu(), twin, rtol=0, atol=limit)


def engine_options(**options):
    """Options of an engine on the place."""
    if not INTERPRETED:
        return {"device": "cuda", **options}
    kept = {name: value for name, value in options.items() if name not in ONLY_CUDA}
    return {"device": "cpu", "attention_backend": "reference", **kept}
