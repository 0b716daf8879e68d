"""Token sequences as the tree compares them."""

from array import array
from collections.abc import Iterable


def as_tokens(ids: Iterable[int] | bytes) -> "array[int]":
    """Token ids, or their packed uint32 form, as the `array("I")` that the tree compares.

    An array is sliced and compared at memory speed and takes four bytes a token.
    """
    return array("I", ids)


def common_prefix(a: "array[int]", a_from: int, b: "array[int]", b_from: int, limit: int) -> int:
    """How many tokens from a[a_from] and b[b_from] on are equal, at most `limit`.

    Slices are compared whole (that is a memory compare), then halved around the first difference.
    """
    limit = min(limit, len(a) - a_from, len(b) - b_from)
    if limit <= 0 or a[a_from] != b[b_from]:
        return 0
    if a[a_from : a_from + limit] == b[b_from : b_from + limit]:
        return limit
    equal, differ = 1, limit  # the first `equal` agree; the first `differ` do not
    while differ - equal > 1:
        middle = (equal + differ) // 2
        if a[a_from + equal : a_from + middle] == b[b_from + equal : b_from + middle]:
            equal = middle
        else:
            differ = middle
    return equal
