"""Where downloaded and converted models are kept."""

import os
from pathlib import Path

from ramify.kernels.cpu import build
from ramify.srt.errors import ConfigError


def cache_folder() -> Path:
    """The user's cache folder, made when missing: $RAMIFY_CACHE, else ~/.cache/ramify.

    Readable by its owner only. A folder of somebody else is refused (ConfigError): what lies in
    it is trusted.
    """
    folder = build.cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be made ({error.strerror}); "
            f"set RAMIFY_CACHE to a folder of yours"
        ) from error
    if folder.stat().st_uid != os.geteuid():
        raise ConfigError(
            f"the cache folder {folder} belongs to another user; set RAMIFY_CACHE to one of yours"
        )
    return folder
