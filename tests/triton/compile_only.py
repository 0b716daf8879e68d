"""A Triton driver without a GPU: launches are compiled and measured, then noted instead of made.

The unchanged host code runs on CPU tensors. Each launch is specialised as it would be for a GPU,
compiled by the assembler that comes with Triton, and checked against the GPU's shared memory:

    with recording(90) as launches:
        some_op(tensors)
    assert launches[0].spills == 0
"""

import re
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# By compute capability: A100, H100 and H200, B200.
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
ARCHITECTURES = tuple(SHARED_BYTES)


@dataclass(frozen=True)
class Binary:
    """A compiled kernel."""

    name: str
    arch: int
    registers: int
    spills: int  # bytes of local memory of a thread
    shared: int  # bytes of shared memory of a program
    cubin: bytes

    def count(self, instruction: str) -> int:
        """How often an instruction of this name is in the machine code."""
        text = _tool("nvdisasm", self.cubin)
        return len(re.findall(rf"\b{instruction}\b", text))


@dataclass(frozen=True)
class Launch:
    """A launch that would have been made."""

    binary: Binary
    grid: tuple[int, int, int]

    def __getattr__(self, name):
        return getattr(self.binary, name)


class CompileOnlyDriver(DriverBase):
    """Stands for one GPU of each architecture; a device's number is its compute capability."""

    def __init__(self):
        super().__init__()
        self.arch = 90
        self.launches: list[Launch] = []
        self.utils = self

    @classmethod
    def is_active(cls):
        return True

    def get_current_device(self):
        return self.arch

    def get_current_stream(self, device=0):
        return 0

    def get_device_capability(self, device=0):
        return divmod(self.arch, 10)

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError("nothing runs, so nothing can be timed")

    def get_device_properties(self, device):
        return {
            "max_shared_mem": SHARED_BYTES[device],
            "multiprocessor_count": MULTIPROCESSORS[device],
            "max_num_regs": 65_536,
            "warpSize": 32,
        }

    def load_binary(self, name, cubin, shared, device):
        usage = re.search(
            r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
            _tool("cuobjdump", cubin, "--dump-resource-usage"),
        )
        registers, stack, _, local = map(int, usage.groups())
        binary = Binary(name, self.arch, registers, stack + local, shared, cubin)
        return object(), binary, registers, binary.spills, 1024

    def unload_module(self, module):
        pass

    def launcher_cls(self, src, metadata):
        def note(x, y, z, stream, binary, *args):
            self.launches.append(Launch(binary, (x, y, z)))

        return note


def _tool(name, cubin, *options):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


DRIVER = CompileOnlyDriver()


def install():
    """Make this process compile and never launch."""
    triton.runtime.driver.set_active(DRIVER)


@contextmanager
def recording(arch=90):
    """The list of launches made inside, compiled for one compute capability."""
    before = DRIVER.arch, DRIVER.launches
    DRIVER.arch, DRIVER.launches = arch, []
    try:
        yield DRIVER.launches
    finally:
        DRIVER.arch, DRIVER.launches = before


def table(launches):
    """Lines of a table of registers, spills and shared memory, to be printed."""
    lines = [f"{'kernel':32} {'sm':>4} {'regs':>5} {'spills':>7} {'shared':>8}  grid"]
    lines += [
        f"{x.name:32} {x.arch:>4} {x.registers:>5} {x.spills:>7} {x.shared:>8}  {x.grid}"
        for x in launches
    ]
    return "\n".join(lines)
