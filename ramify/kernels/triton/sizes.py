"""Arithmetic of tile sides. Needs no triton: tiles are chosen and checked where there is none."""


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n: the sides of a tile must be such."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(n: int, size: int) -> int:
    """How many tiles of a size cover n."""
    return -(-n // size)
