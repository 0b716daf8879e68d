"""What the deciding half asks the executing half to do: values, nothing but integers and bytes.

    device page  --PageStore-->  host slot  --FileWrite-->  file
                 <--PageLoad--              <--FileRead---

Moves of one step are carried out in the order in which they were decided, before any row of the
step is computed. The two that touch files are only begun then: they end with a `FileDone`, and
nothing else uses their slot until it came.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy the first `n_slots` slots of page `source` to page `target`, in every layer.

    This is the copy-on-write of a partly matched page.
    """

    source: int
    target: int
    n_slots: int


@dataclass(frozen=True, slots=True)
class PageStore:
    """Copy a page of the pool to a slot of host memory."""

    page: int
    slot: int


@dataclass(frozen=True, slots=True)
class PageLoad:
    """Copy a slot of host memory to a page of the pool."""

    slot: int
    page: int


@dataclass(frozen=True, slots=True)
class PageRecord:
    """What a stored page holds: the keys and values of `tokens` after a certain beginning.

    `parent` is the digest of that beginning (see `tiers`), `tokens` are packed uint32, at most P of
    them, `key` is the digest of both: equal keys hold equal content.
    """

    key: bytes
    parent: bytes
    tokens: bytes


@dataclass(frozen=True, slots=True)
class FileWrite:
    """Begin to write a host slot to the file of `record`."""

    slot: int
    record: PageRecord


@dataclass(frozen=True, slots=True)
class FileRead:
    """Begin to read the file of `record` into a host slot."""

    record: PageRecord
    slot: int


@dataclass(frozen=True, slots=True)
class FileDrop:
    """Remove the file of `key`. Nothing reports its end."""

    key: bytes


Move = PageCopy | PageStore | PageLoad | FileWrite | FileRead | FileDrop


@dataclass(frozen=True, slots=True)
class FileDone:
    """A `FileWrite` or `FileRead` has ended. Not `ok`: the file is not there or not to be used."""

    move: FileWrite | FileRead
    ok: bool
