"""Numbers between guards: a kernel that reads or writes beyond its memory is seen."""

import torch

GUARD = 256  # numbers before and after what a kernel may read and write


def guarded(x, device="cpu"):
    """(the numbers on the device, the memory around them): NaN before and after, or bytes of 0x7f.

    0x7f is NaN as e4m3. A kernel that reads beyond its numbers gives NaN, one that writes is seen
    by `untouched`.
    """
    memory = torch.empty(x.numel() + 2 * GUARD, dtype=x.dtype)
    narrow = x.dtype.itemsize == 1 or not x.dtype.is_floating_point
    memory.view(torch.uint8).fill_(0x7F) if narrow else memory.fill_(torch.nan)
    memory[GUARD:-GUARD] = x.flatten()
    memory = memory.to(device)
    return memory[GUARD:-GUARD].view(x.shape), memory


def inside(x, device="cpu"):
    """The numbers of `guarded`, where nothing is to be written."""
    return guarded(x, device)[0]


def untouched(memory):
    """Whether the guards are what they were."""
    ends = torch.cat((memory[:GUARD], memory[-GUARD:])).cpu()
    narrow = ends.dtype.itemsize == 1 or not ends.dtype.is_floating_point
    return bool((ends.view(torch.uint8) == 0x7F).all() if narrow else ends.isnan().all())
