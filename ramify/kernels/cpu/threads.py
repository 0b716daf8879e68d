"""How many threads the C++ kernels use: a number of their own, so that torch can be kept to one.

torch's OpenMP threads spin for milliseconds after every parallel operation. In a step they would
take the cores that the kernels' own helpers (`pool.h`) need.
"""

import torch

_chosen: list[int] = []  # at most one: there is one pool of helpers in a process


def threads() -> int:
    """What `set_threads` said last; before that, torch's number."""
    return _chosen[0] if _chosen else torch.get_num_threads()


def set_threads(n: int) -> None:
    """Use n threads in every C++ kernel of this process."""
    _chosen[:] = [n]
