"""The C++ library, loaded once for the process, with the argument types of its functions."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.kernels.cpu.build import BuildError, build

_HERE = Path(__file__).parent
_SOURCES = ("elementwise.cpp", "linear.cpp", "logits.cpp", "paged_attention.cpp")
_HEADERS = ("pool.h", "tile.h", "vec.h")
SUFFIX = {torch.bfloat16: "bf16", torch.float32: "fp32"}

# One letter per argument, in the order of the C++ signature.
_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
}
_SIGNATURES = {
    "pack_linear": "pp ii",
    "linear": "pppp l ii i",
    "rms_norm": "pppp l i f i",
    "silu_mul": "pp l i i",
    "rope_write_kv": "ppppppppp lll iiii f i",
    "mask_logits": "ppp ll ii i",
    "paged_attention": "pppppppppppp llllll iiii f i",
}

Function = Callable[..., int]


class Functions(dict[tuple[str, torch.dtype], Function]):
    """The functions by name and number type."""

    def __missing__(self, key: tuple[str, torch.dtype]) -> Function:
        raise ValueError(f"{key[0]} on a CPU takes {', '.join(map(str, SUFFIX))}, got {key[1]}")


@functools.cache
def library() -> Functions:
    """The functions by name and number type. Raises BuildError."""
    path = build("ramify", [_HERE / name for name in _SOURCES], [_HERE / name for name in _HEADERS])
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"cannot load {path}: {error}") from error
    functions = Functions()
    for name, letters in _SIGNATURES.items():
        for dtype, suffix in SUFFIX.items():
            function = loaded[f"{name}_{suffix}"]
            function.argtypes = [_TYPES[letter] for letter in letters.replace(" ", "")]
            functions[name, dtype] = function
    return functions


def pointer(x: Tensor | None) -> int | None:
    """The address of a tensor's data; None (a null pointer) for None."""
    return None if x is None else x.data_ptr()
