"""A bounded memory of what was evicted, so that a miss can be explained.

A prefix is remembered by a checksum of its namespace and tokens. Of an evicted node these prefixes
are: the one that ends with its first token, and every one that ends at a multiple of STRIDE. A
request that matched n tokens asks for n + 1 and for the next multiple, so it is told also when
another request has computed the beginning of the lost part again.

    STRIDE = 64    evicted: positions 10 .. 200     remembered lengths: 11, 64, 128, 192
                   matched since then: 100          asked for: 101 (no), 128 (yes)

A checksum may collide: this explains, it never decides.
"""

import zlib
from array import array
from collections import OrderedDict

STRIDE = 64  # tokens
CAPACITY = 8192  # prefixes remembered, about 2 MiB


def namespace_digest(namespace: str) -> int:
    """The digest of a namespace's empty prefix."""
    return zlib.crc32(namespace.encode("utf-8", "surrogatepass"))


def extend(digest: int, tokens: "array[int]") -> int:
    """The digest of a prefix, from that of its beginning and the rest. The same in every run."""
    return zlib.crc32(tokens, digest)


class EvictedPrefixes:
    """The latest CAPACITY prefixes, each by its (length, digest); the oldest are forgotten."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, digest: int, start: int, tokens: "array[int]") -> None:
        """Remember an evicted node; `digest` is that of what is before it."""
        done, length, end = start, start + 1, start + len(tokens)
        while length <= end:
            digest = extend(digest, tokens[done - start : length - start])
            self._seen[length, digest] = None
            self._seen.move_to_end((length, digest))
            done, length = length, _next_multiple(length)
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    def had(self, namespace: str, key: "array[int]", n: int) -> bool:
        """Whether more than n tokens of `key` were there once, as far as is remembered."""
        digest, done = namespace_digest(namespace), 0
        for length in (n + 1, _next_multiple(n)):
            if length > len(key):
                return False
            digest = extend(digest, key[done:length])
            if (length, digest) in self._seen:
                return True
            done = length
        return False

    def clear(self) -> None:
        """Forget that anything was ever evicted."""
        self._seen.clear()


def _next_multiple(length: int) -> int:
    """The first multiple of STRIDE that is larger."""
    return (length // STRIDE + 1) * STRIDE
