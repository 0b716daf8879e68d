"""What is remembered of grammars: compiled ones by size, refusals for a short time.

One cache belongs to one backend over one vocabulary, lives in memory and ends with its process:
so neither of the two is part of a key, and nothing that a client sent reaches a disk.

    least recently used                        most recently used
    | grammar 2 MB | refusal | grammar 40 kB | grammar 1 MB |
      <- forgotten while sizes exceed max_bytes, or entries max_entries
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from ramify.srt.constrained.base import CompiledGrammar, GrammarError
from ramify.srt.grammar import GrammarSpec

ENTRY_BYTES = 1024  # what an entry costs beside its grammar, rounded up
NO_PARAM = ""


def cache_key(spec: GrammarSpec) -> bytes:
    """Equal for specs that compile to the same grammar: the name of the client's field is not in.

    The text is taken as it is: the order of a schema's properties is part of its meaning.
    Raises GrammarError for text that is not Unicode.
    """
    try:
        encoded = msgspec.msgpack.encode(msgspec.structs.replace(spec, param=NO_PARAM))
    except UnicodeEncodeError as error:
        raise GrammarError("invalid_grammar", "a grammar must not hold lone surrogates") from error
    return hashlib.sha256(encoded).digest()


@dataclass(frozen=True)
class _Entry:
    found: CompiledGrammar | GrammarError
    size_bytes: int
    ends_s: float | None  # when a refusal is forgotten; a grammar never ages


class GrammarCache:
    """Grammars and refusals by key. Times come in as arguments; not thread-safe."""

    def __init__(self, max_bytes: int, max_entries: int, refusal_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._refusal_s = refusal_s
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Sizes of all entries when they were put in."""
        return self._bytes

    def get(self, key: bytes, now_s: float) -> CompiledGrammar | GrammarError | None:
        """What is known of a grammar, which is then the most recently used."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.ends_s is not None and entry.ends_s <= now_s:
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry.found

    def put(
        self, key: bytes, found: CompiledGrammar | GrammarError, now_s: float, held_bytes: int = 0
    ) -> None:
        """Remember a grammar or a refusal. `held_bytes` is what a grammar was measured to hold,
        if that is more than it says. One too large for the whole cache is not remembered."""
        self._forget(key)
        if isinstance(found, GrammarError):
            entry = _Entry(found, ENTRY_BYTES + len(found.message), now_s + self._refusal_s)
        else:
            entry = _Entry(found, ENTRY_BYTES + max(found.nbytes, held_bytes), None)
        if entry.size_bytes > self._max_bytes:
            return
        self._entries[key] = entry
        self._bytes += entry.size_bytes
        while self._bytes > self._max_bytes or len(self._entries) > self._max_entries:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size_bytes
