"""One file for each stored page, checked to the last bit whenever it is read.

    FOLDER/FINGERPRINT/.lock      held by the one engine that uses the folder
    FOLDER/FINGERPRINT/.part      the file being written; a leftover of a crash, if found at start
    FOLDER/FINGERPRINT/KEY        a whole page: it appears by one rename; KEY in hexadecimal

    | magic, version | page bytes, 4 lengths | fingerprint, key, parent, tokens | crc | page | crc |
    |<------------------------- header, sealed by its crc ------------------------>|
                                               the second crc goes on from the first, so that
                                               a page cannot stand behind another's header

CRC-32 finds every damage of up to 32 bits in a row, and misses one of 4 billion others, at seven
times the speed of BLAKE2. It is no protection against a forger; the folder is its owner's only.
Nothing is synced to the disk: a power cut may leave damaged files, and those are found out.
"""

import errno
import fcntl
import logging
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ramify.radix_cache.page_keys import page_key
from ramify.radix_cache.plans import PageRecord

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MAGIC = b"rmfypage"
FIXED = struct.Struct("<8sIQ4H")  # magic, version, page bytes, lengths of the four texts
CRC = struct.Struct("<I")
MOST_NAME = 64  # bytes of a fingerprint, a key or a parent
BLOCK = 4096  # file systems give space in blocks of it
LOCK, PART = ".lock", ".part"
NAMED = 20  # unusable files that are named in the log; more are counted
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # nonblocking: opening a pipe must not wait
WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


class FolderUnusable(Exception):
    """The folder of page files cannot be used. The message says why and what to do about it."""


class PageFileError(OSError):
    """A file that is not the page it should be. The message says what is wrong with it."""


def file_bytes(page_bytes: int, page_size: int) -> int:
    """Disk space of one page file, at most."""
    size = _most_header(page_size) + page_bytes + CRC.size
    return -(-size // BLOCK) * BLOCK


class PageFiles:
    """The page files of one model and configuration; one thread at a time may use them.

    `fingerprint` tells what keys and values depend on, `page_bytes` is the size of those of a page.
    """

    def __init__(self, folder: Path, fingerprint: str, page_bytes: int, page_size: int) -> None:
        """Takes the folder and removes what a crash left. Raises FolderUnusable."""
        self._folder = folder / fingerprint
        self._fingerprint = fingerprint.encode("ascii")
        self._page_bytes = page_bytes
        self._most_header = _most_header(page_size)
        try:
            _make_private(self._folder)
            self._lock = _take(self._folder / LOCK)
        except OSError as error:
            raise FolderUnusable(f"{self._folder} cannot be used: {_reason(error)}") from error
        with suppress(OSError):  # then the first write says why
            (self._folder / PART).unlink()

    def close(self) -> None:
        """Let another engine have the folder."""
        self._lock.close()

    def scan(self) -> list[PageRecord]:
        """The records of all sound files, the longest unused first. Reads headers only.

        Whatever else lies there is left alone, and named in the log.
        """
        found: list[tuple[int, str, PageRecord]] = []
        unusable: list[str] = []
        for name in sorted(os.listdir(self._folder)):
            if name in (LOCK, PART):
                continue
            try:
                found.append(self._examine(name))
            except OSError as error:
                unusable.append(f"{name!r}: {_reason(error)}")
        for text in unusable[:NAMED]:
            logger.warning("ignored in %s: %s", self._folder, text)
        if len(unusable) > NAMED:
            logger.warning("ignored in %s: %d more", self._folder, len(unusable) - NAMED)
        return [record for _, _, record in sorted(found, key=lambda item: item[:2])]

    def write(self, record: PageRecord, page: memoryview) -> None:
        """Make the file of `record`, whole or not at all. Raises OSError."""
        part = self._folder / PART
        header, crc = self._header(record)
        try:
            with open(os.open(part, WRITE, 0o600), "wb") as file:
                file.write(header)
                file.write(page)
                file.write(CRC.pack(zlib.crc32(page, crc)))
            os.replace(part, self._folder / record.key.hex())
        except OSError:
            with suppress(OSError):  # the first error is the one to tell
                part.unlink()
            raise

    def read(self, record: PageRecord, page: memoryview) -> None:
        """Fill `page` from the file of `record`, which counts as use of it.

        Raises OSError when the file is not there, and PageFileError when any bit of it is not as it
        was written; then `page` holds nothing of use.
        """
        header, crc = self._header(record)
        got, end = bytearray(len(header)), bytearray(CRC.size)
        with _opened(self._folder / record.key.hex()) as (file, state):
            n_read = os.preadv(file, [got, page, end], 0)
            os.utime(file)
        if n_read != state.st_size or n_read != len(header) + len(page) + CRC.size:
            raise PageFileError(f"it has {state.st_size} bytes, which is not a page")
        if got != header:
            raise PageFileError("its header is not the one that was written")
        if CRC.unpack(end)[0] != zlib.crc32(page, crc):
            raise PageFileError("its content is damaged")

    def drop(self, key: bytes) -> None:
        """Remove the file of `key`, if there is one. Raises OSError."""
        (self._folder / key.hex()).unlink(missing_ok=True)

    def _header(self, record: PageRecord) -> tuple[bytes, int]:
        """The header of a file and its checksum."""
        texts = (self._fingerprint, record.key, record.parent, record.tokens)
        lengths = map(len, texts)
        body = FIXED.pack(MAGIC, FORMAT_VERSION, self._page_bytes, *lengths) + b"".join(texts)
        crc = zlib.crc32(body)
        return body + CRC.pack(crc), crc

    def _examine(self, name: str) -> tuple[int, str, PageRecord]:
        """(time of last use, name, record) of a file. Raises OSError, mostly a PageFileError."""
        with _opened(self._folder / name) as (file, state):
            head = os.pread(file, self._most_header, 0)
        record = self._parse(head, state.st_size)
        if record.key.hex() != name:
            raise PageFileError("it has the content of another file")
        return state.st_mtime_ns, name, record

    def _parse(self, head: bytes, size: int) -> PageRecord:
        """The record in a header; `head` is at most as long as headers get, whatever they say."""
        if len(head) < FIXED.size or not head.startswith(MAGIC):
            raise PageFileError("it is no page file")
        _, version, page_bytes, *lengths = FIXED.unpack_from(head)
        if version != FORMAT_VERSION:
            raise PageFileError(f"it has format {version}, not {FORMAT_VERSION}")
        end = FIXED.size + sum(lengths)
        if CRC.pack(zlib.crc32(head[:end])) != head[end : end + CRC.size]:
            raise PageFileError("its header is damaged")
        fingerprint, key, parent, tokens = _split(head[FIXED.size : end], lengths)
        if fingerprint != self._fingerprint or page_bytes != self._page_bytes:
            raise PageFileError("it is of another model or configuration")
        if size != end + CRC.size + page_bytes + CRC.size:
            raise PageFileError(f"it has {size} bytes, which is not a page")
        if not tokens or len(tokens) % 4 or key != page_key(parent, tokens):
            raise PageFileError("its key is not that of its tokens")
        return PageRecord(key, parent, tokens)


def _most_header(page_size: int) -> int:
    """No header is longer."""
    return FIXED.size + 3 * MOST_NAME + 4 * page_size + CRC.size


def _split(texts: bytes, lengths: list[int]) -> Iterator[bytes]:
    at = 0
    for length in lengths:
        yield texts[at : at + length]
        at += length


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """An open regular file and its state. Raises OSError; follows no symbolic link."""
    file = os.open(path, READ)
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise PageFileError("it is no regular file")
        yield file, state
    finally:
        os.close(file)


def _make_private(folder: Path) -> None:
    """Make the folder if it is missing, for its owner only: it tells what was asked."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        raise PageFileError("it is not a folder of this user")
    folder.chmod(0o700)


def _take(path: Path) -> BinaryIO:
    """Lock a file until it is closed, or its process has ended. Raises OSError."""
    file = os.fdopen(os.open(path, WRITE, 0o600), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise PageFileError("another engine uses it") from error
        raise
    return file


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link"
    return error.strerror or str(error)
