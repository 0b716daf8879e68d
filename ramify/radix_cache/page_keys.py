"""The names of pages by their content, the same in every run and on every machine alike.

    namespace ---> root key = parent of page 0
    parent of page 0 + tokens 0 .. P-1   ---> key of page 0 = parent of page 1
    parent of page 1 + tokens P .. 2P-1  ---> key of page 1 = parent of page 2

So a key stands for a namespace and every token up to the page's end. A page found by its key is
used unseen, and another user's page must never be: keys are cryptographic digests, not checksums.
Root keys and page keys are of two kinds, so no namespace can be made to look like a prefix.
"""

from array import array
from hashlib import blake2b

from ramify.radix_cache.plans import PageRecord
from ramify.radix_cache.tree import Node

KEY_BYTES = 16


def root_key(namespace: str) -> bytes:
    """The key of a namespace's empty prefix."""
    text = namespace.encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=KEY_BYTES, person=b"namespace").digest()


def page_key(parent: bytes, tokens: bytes) -> bytes:
    """The key of the page that holds `tokens`, packed, after the prefix of key `parent`."""
    return blake2b(parent + tokens, digest_size=KEY_BYTES, person=b"page").digest()


class PageKeys:
    """The keys of the full pages of one growing sequence, each computed when first asked for."""

    def __init__(self, namespace: str, page_size: int) -> None:
        self._page_size = page_size
        self._keys = [root_key(namespace)]

    def parent(self, key: "array[int]", k: int) -> bytes:
        """The key of the first k pages of the sequence `key`, which fill them."""
        size, keys = self._page_size, self._keys
        while len(keys) <= k:
            start = (len(keys) - 1) * size
            keys.append(page_key(keys[-1], key[start : start + size].tobytes()))
        return keys[k]


def node_pages(node: Node, page_size: int) -> list[tuple[int, PageRecord]]:
    """(page, what it holds) for every page that the node lists, the deepest last.

    Where the node begins inside a page, that page holds its ancestors' tokens too: rule (1) of
    the tree.
    """
    parent = _key_before(node, page_size)
    first = node.start // page_size * page_size
    tokens = _tokens_from(node, first)
    found = []
    for k, page in enumerate(node.pages):
        packed = tokens[k * page_size : (k + 1) * page_size].tobytes()
        record = PageRecord(page_key(parent, packed), parent, packed)
        found.append((page, record))
        parent = record.key
    return found


def _key_before(node: Node, page_size: int) -> bytes:
    """The key of the pages that are full before the one in which the node begins."""
    unknown = []
    at = node.parent
    while at is not None and at.parent is not None and not at.page_key:
        unknown.append(at)
        at = at.parent
    if at is None:
        return b""  # of a root: it has no pages
    if not at.page_key:
        at.page_key = root_key(at.namespace)
    key = at.page_key
    for each in reversed(unknown):
        first = each.start // page_size * page_size
        tokens = _tokens_from(each, first)
        for start in range(0, each.end // page_size * page_size - first, page_size):
            key = page_key(key, tokens[start : start + page_size].tobytes())
        each.page_key = key
    return key


def _tokens_from(node: Node, first: int) -> "array[int]":
    """The tokens at positions first .. node.end - 1 of the path to the node."""
    parts = []
    at: Node | None = node
    while at is not None and at.end > first:
        parts.append(at.tokens[max(first - at.start, 0) :])
        at = at.parent
    tokens = array("I")
    for part in reversed(parts):
        tokens += part
    return tokens
