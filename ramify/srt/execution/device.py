"""Where the model runs, and how numbers get there and back without anybody waiting.

upload(array)  -> tensor      a copy that the device makes when it comes to it
fetch(tensors) -> Fetched     copies that the device begins after what it has been given so far
Fetched.wait()                waits for those copies, and for nothing that was launched later

Copies go through pinned memory, which torch keeps and does not give out again before the copies
that use it are done. On a CPU everything is done at once: that is how all of it is tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ramify.srt.errors import ConfigError
from ramify.srt.weights.reader import WeightSource

NO_GPU = (
    "device cuda: no NVIDIA GPU can be used here (torch {version}, {build}); use --device cpu, "
    "or install a driver and a torch with CUDA"
)
PIECES_PER_PROCESSOR = 4  # programs of decode attention that keep one busy


@dataclass(frozen=True)
class Fetched:
    """Copies on their way to the host."""

    tensors: tuple[Tensor, ...]
    event: torch.cuda.Event | None  # None: they are there

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU in the place of one."""

    torch_device: torch.device

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    @property
    def free_and_total(self) -> tuple[int, int]:
        """Bytes of a GPU's memory: those that are free, and all. Gives back what torch keeps."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.torch_device)

    @property
    def has_fp8(self) -> bool:
        """Whether kernels can be compiled that read and write e4m3: an L4, an H100 or later."""
        return torch.cuda.get_device_capability(self.torch_device) >= (8, 9)

    @property
    def name(self) -> str:
        """What computes, as far as that may change a bit of a result."""
        return torch.cuda.get_device_name(self.torch_device) if self.is_cuda else "cpu"

    def upload(self, array: npt.NDArray[np.generic]) -> Tensor:
        """A copy on the device. The array may be changed afterwards."""
        if not self.is_cuda:
            return torch.from_numpy(array.copy())
        return torch.from_numpy(array).pin_memory().to(self.torch_device, non_blocking=True)

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """Begin to copy tensors to the host."""
        if not self.is_cuda:
            return Fetched(tuple(tensor.clone() for tensor in tensors), None)
        copies = []
        for tensor in tensors:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(host.copy_(tensor, non_blocking=True))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return Fetched(tuple(copies), event)

    def attention_pieces(self, kv_heads: int) -> int:
        """Into how many pieces decode attention is to be cut, to keep all processors busy."""
        if not self.is_cuda:
            return 2
        processors = torch.cuda.get_device_properties(self.torch_device).multi_processor_count
        return max(-(-PIECES_PER_PROCESSOR * processors // kv_heads), 1)


class OnDevice:
    """A `WeightSource` whose tensors are on a device."""

    def __init__(self, source: WeightSource, device: Device) -> None:
        self._source = source
        self._device = device

    @property
    def total_bytes(self) -> int:
        return self._source.total_bytes

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._source.read(name, shape).to(self._device.torch_device)


def open_device(name: str) -> Device:
    """The device of an option. Raises ConfigError if it is `cuda` and there is no GPU."""
    if name == "cuda":
        if not torch.cuda.is_available():
            build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            raise ConfigError(NO_GPU.format(version=torch.__version__, build=build))
        return Device(torch.device("cuda", torch.cuda.current_device()))
    return Device(torch.device("cpu"))
