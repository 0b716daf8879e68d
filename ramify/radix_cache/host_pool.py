"""Host memory for pages that have left the KV pool: one contiguous slot for each page."""

import torch

from ramify.radix_cache.kv_pool import KvPool, untouched


class HostPool:
    """Slots [slots, 2, layers, kv heads, P, head_dim]: keys, then values, of all layers of a page.

    Contiguous, so that a slot is written to a file and read from one as it lies. The memory is
    untouched at first, like the pool's: a large tier costs only what is used of it. Below a GPU it
    is pinned, and taken at once: only such memory is copied at the full speed of the bus.
    """

    def __init__(self, pool: KvPool, n_slots: int) -> None:
        layers, _, *page = pool.keys.shape
        shape = (n_slots, 2, layers, *page)
        self.slots = (
            torch.zeros(shape, dtype=pool.keys.dtype, pin_memory=True)
            if pool.keys.is_cuda
            else untouched(shape, pool.keys.dtype)
        )
        self._bytes = self.slots.view(torch.uint8).view(n_slots, -1).numpy()

    @property
    def n_slots(self) -> int:
        return len(self.slots)

    def raw(self, slot: int) -> memoryview:
        """The bytes of a slot, to be read or written in place."""
        return memoryview(self._bytes[slot])
