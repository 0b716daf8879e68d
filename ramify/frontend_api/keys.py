"""API keys: which ones the server takes, and whose a request is.

    --api-key, RAMIFY_API_KEY      one key, of the account "default"
    --api-keys-file                NAME:KEY a line, each name an account

A key on a command line is seen by all who can list processes; the other two places are for those
who are not alone on the machine. Only digests of keys are kept, and nothing tells or logs a key.
"""

import hmac
import logging
import os
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from ramify.srt.config import ServeConfig
from ramify.srt.errors import ConfigError

ENVIRONMENT = "RAMIFY_API_KEY"
DEFAULT_ACCOUNT = "default"
MAX_KEYS = 1000  # each request's key is compared with all of them
OTHERS_MAY_READ = 0o077

log = logging.getLogger("ramify.serve")

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-~]{16,}")


class Keys:
    """The keys that are taken, by name of their accounts."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, where: str, name: str, key: str) -> None:
        """Take one more. Raises ConfigError that begins with `where` and does not tell the key."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: a name has 1 to 64 letters, digits, dots, _ and -")
        if not _KEY.fullmatch(key):
            raise ConfigError(f"{where}: a key has 16 or more visible ASCII characters")
        digest = sha256(key.encode()).digest()
        if name in self._digests:
            raise ConfigError(f"{where}: the name has a key already")
        if digest in self._digests.values():
            raise ConfigError(f"{where}: the key is there already under another name")
        if len(self._digests) == MAX_KEYS:
            raise ConfigError(f"{where}: there may be at most {MAX_KEYS} keys")
        self._digests[name] = digest

    def account(self, key: bytes) -> str | None:
        """Whose key it is. Takes the same time for every key that is sent, right or wrong."""
        digest, found = sha256(key).digest(), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def load_keys(config: ServeConfig, environ: Mapping[str, str]) -> Keys | None:
    """The keys of the options and of the environment; None when there are none, so all may come.

    Raises ConfigError.
    """
    keys = Keys()
    if config.api_key is not None:
        keys.add("api_key", DEFAULT_ACCOUNT, config.api_key)
    elif environ.get(ENVIRONMENT):
        keys.add(ENVIRONMENT, DEFAULT_ACCOUNT, environ[ENVIRONMENT])
    elif config.api_keys_file is None:
        return None
    if config.api_keys_file is not None:
        for where, name, key in _entries(Path(config.api_keys_file)):
            keys.add(where, name, key)
    return keys


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, name, key) of each line of a file of keys."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            if os.fstat(file.fileno()).st_mode & OTHERS_MAY_READ:
                log.warning("%s holds keys, and others may read it: chmod 600 it", path)
            lines = file.read().splitlines()
    except OSError as error:
        raise ConfigError(f"api_keys_file {path}: {os.strerror(error.errno or 0)}") from None
    given = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    given = [(number, line) for number, line in given if line and not line.startswith("#")]
    if not given:
        raise ConfigError(f"api_keys_file {path}: there are no keys in it")
    for number, line in given:
        name, _, key = line.partition(":")
        yield f"api_keys_file {path}, line {number}", name.strip(), key.strip()
