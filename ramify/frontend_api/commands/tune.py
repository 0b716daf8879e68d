"""`ramify tune`: measures the attention kernels on the GPU that is here, and keeps what is best."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ramify.kernels.triton.stamp import kernel_stamp
from ramify.kernels.triton.tile_table import AttentionShape
from ramify.kernels.triton.tiles import Tile
from ramify.srt.errors import ConfigError
from ramify.srt.execution.device import Device, open_device
from ramify.srt.models.config import ModelConfig
from ramify.srt.tuning.loads import Steps
from ramify.srt.tuning.store import keep, tuning_file
from ramify.srt.weights.source import prepare

if TYPE_CHECKING:  # needs triton, which is asked for only where there is a GPU
    from ramify.srt.tuning.tuner import Choice, Plan, Timer

ANY_CONTEXT = 2  # tokens: attention has the same shape for all, and no window is shorter
DTYPE = torch.bfloat16  # what an engine on a GPU computes in, and keeps


def run(parsed: argparse.Namespace) -> int:
    """The subcommand. Returns the exit code. Raises ConfigError without a GPU or without triton."""
    if parsed.page_size < 1:
        raise ConfigError(f"page_size must be at least 1, got {parsed.page_size}")
    device = open_device("cuda")
    shape = shape_of(prepare(parsed.model).config(), parsed.page_size)
    try:
        from ramify.srt.tuning.device_timer import DeviceTimer
        from ramify.srt.tuning.tuner import Plan

        print(tune_card(device, shape, DeviceTimer(device), Plan()))
    except ModuleNotFoundError as error:
        raise ConfigError(f"the kernels need {error.name}: install ramify[gpu]") from None
    except torch.OutOfMemoryError:
        raise ConfigError("the GPU has no memory to measure in: end what else runs on it") from None
    return 0


def shape_of(config: dict[str, object], page_size: int) -> AttentionShape:
    """The shape of a model's attention, from its config.json. Raises ModelLoadError."""
    model = ModelConfig.from_hf(config, context_length=ANY_CONTEXT)
    size = DTYPE.itemsize
    return AttentionShape(model.n_heads, model.n_kv_heads, model.head_dim, size, size, page_size)


def tune_card(device: Device, shape: AttentionShape, timer: "Timer", plan: "Plan") -> str:
    """Measure a shape and keep the result. Returns what to tell.

    Raises RamifyError if no tile can be used, ConfigError if the result cannot be kept.
    """
    from ramify.srt.tuning.tuner import tune

    file = tuning_file(device.name)
    with torch.inference_mode(), _progress(plan.n_timings(shape)) as advance:

        def counted(call: Callable[[], object]) -> float:
            advance()
            return timer(call)

        tiles, choices = tune(Steps(shape, device, DTYPE, DTYPE), counted, plan)
    try:
        keep(file, device.name, kernel_stamp(), shape, tiles)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    lines = [
        f"attention on {device.name}: {shape.heads} query heads, {shape.kv_heads} K/V heads "
        f"of {shape.head_dim}, pages of {shape.page_size}"
    ]
    for choice in choices:
        lines += report(choice)
    return "\n".join([*lines, f"\nkept in {file}; engines use it from their next start"])


def report(choice: "Choice") -> list[str]:
    """What was measured of one launch, as lines of a table."""
    default, best = choice.timed[0], choice.best
    kept = "kept" if best is default else f"{choice.gain:.1%} faster with {_named(best.candidate)}"
    lines = ["", f"{choice.launch} tile: {_named(default.candidate)}: {kept}"]
    lines.append(f"  {'load':32}{'first us':>12}{'best us':>12}")
    for load, before, after in zip(choice.loads, default.seconds, best.seconds, strict=True):
        lines.append(f"  {load!s:32}{before * 1e6:>12.1f}{after * 1e6:>12.1f}")
    return [*lines, *(f"  left out: {_named(x.tile)}: {x.reason}" for x in choice.dropped)]


def _named(tile: Tile) -> str:
    through = ", descriptors" if tile.descriptors else ""
    return f"{tile.rows} x {tile.keys}, {tile.warps} warps, {tile.stages} stages{through}"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """A function to call for each timing. It moves a bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("timings", total=total)
        yield lambda: bar.advance(task)
