"""What keys and values depend on, as one short text: equal texts, interchangeable pages.

Time stamps and paths do not count: a copied model finds the pages of its original.
"""

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ramify.srt.errors import ModelLoadError
from ramify.srt.weights.source import ModelFolder

COMPUTATION = 1  # raise it when other keys and values are computed from the same model
SAMPLES = 256  # blocks of all files together, but
LEAST_SAMPLES = 8  # of each
BLOCK = 4096
MOST_HEADER = 1 << 24  # bytes of a safetensors header that count


def fingerprint(
    folder: ModelFolder,
    *,
    device: str,
    dtype: str,
    kv_dtype: str,
    page_size: int,
    backend: str,
    deterministic: bool,
    seed: int,
) -> str:
    """32 hexadecimal digits: the identity of the pages that an engine computes.

    Weights count by their sizes, headers and a sample of their content, as reading gigabytes would
    be slower than computing the pages again; so a change of single values may go unseen. `seed`
    counts for a dummy model only. Raises ModelLoadError when a file cannot be read.
    """
    facts = (
        f"computation {COMPUTATION}, torch {torch.__version__}",
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        f"{device} {backend} {dtype} page_size={page_size} deterministic={deterministic}",
        f"kv {kv_dtype}",
    )
    try:
        return _digest([*(fact.encode() for fact in facts), *_content(folder, seed)])
    except OSError as error:
        raise ModelLoadError(f"{error.filename} cannot be read: {error.strerror}") from error


def _content(folder: ModelFolder, seed: int) -> Iterator[bytes]:
    """What the tensors are made of."""
    yield (folder.path / folder.config_name).read_bytes()
    if folder.dummy:
        yield f"dummy {seed}".encode()
        return
    for index in sorted(folder.path.glob("*.safetensors.index.json")):
        yield index.read_bytes()
    files = sorted(folder.path.glob("*.safetensors"))
    for file in files:
        yield from _sample(file, max(LEAST_SAMPLES, SAMPLES // len(files)))


def _sample(path: Path, n: int) -> Iterator[bytes]:
    """Size, header, and `n` blocks evenly spread from the beginning to the end."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        yield str(size).encode()
        header = int.from_bytes(file.read(8), "little")
        yield file.read(min(header, size, MOST_HEADER))
        last = max(0, size - BLOCK)
        for i in range(n):
            yield os.pread(file.fileno(), BLOCK, last * i // (n - 1))


def _digest(parts: Iterable[bytes]) -> str:
    """A digest in which no part can run into the next."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
