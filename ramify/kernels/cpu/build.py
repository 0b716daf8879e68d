"""Builds a C++ library with the machine's own compiler, once, and keeps it in a private folder.

The name of the library is a hash of everything that decides its content: sources, flags, compiler,
CPU. It is compiled in a temporary folder beside its place and renamed into it, so that other
processes see no library or a whole one. A folder that someone else could write to is refused:
what lies there would be run.
"""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

# No -ffast-math: softmax needs infinities and NaN to stay what they are.
COMPILE = (
    *("-std=c++20", "-O3", "-march=native", "-pthread", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"),
)
LINK = ("-shared", "-pthread")
COMPILE_TIMEOUT_S = 300


class BuildError(RuntimeError):
    """The library cannot be built or trusted. The message says why."""


def cache_folder() -> Path:
    """Where everything that can be made again is kept: RAMIFY_CACHE, or ~/.cache/ramify."""
    return Path(os.environ.get("RAMIFY_CACHE") or "~/.cache/ramify").expanduser()


def build(name: str, sources: Sequence[Path], headers: Sequence[Path]) -> Path:
    """The path of the built library; compiles it if no cached one fits.

    The compiler is g++, or what CXX names. Raises BuildError.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise BuildError(f"no C++ compiler: {os.environ.get('CXX') or 'g++'} is not on the PATH")
    folder = cache_folder() / "kernels"
    library = folder / f"{name}-{_content_key([*sources, *headers], compiler)}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
        if not library.exists():
            _compile(compiler, sources, library)
        _check_private(library)
    except OSError as error:
        raise BuildError(f"cannot use {folder}: {error}") from error
    return library


def _content_key(files: Sequence[Path], compiler: str) -> str:
    digest = hashlib.sha256()
    for part in (*COMPILE, *LINK, compiler, str(Path(compiler).stat().st_mtime_ns), _cpu()):
        digest.update(part.encode() + b"\0")
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """What -march=native depends on: a cache in a shared home must not serve another CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    first_core = lines[: lines.index("") if "" in lines else None]
    return platform.machine() + "\n".join(line for line in first_core if line.startswith(wanted))


def _check_private(path: Path) -> None:
    status = path.lstat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"{path} must belong to this user and be writable by nobody else")


def _compile(compiler: str, sources: Sequence[Path], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as temporary:
        objects = [str(Path(temporary) / f"{source.stem}.o") for source in sources]
        _run_together(
            [compiler, *COMPILE, "-c", str(source), "-o", target]
            for source, target in zip(sources, objects, strict=True)
        )
        linked = Path(temporary) / library.name
        _run_together([[compiler, *LINK, *objects, "-o", str(linked)]])
        linked.chmod(0o700)
        linked.rename(library)


def _run_together(commands: Iterable[list[str]]) -> None:
    """Run the commands side by side. Raises BuildError with what the first to fail wrote."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=COMPILE_TIMEOUT_S)[0] for process in running]
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"compiling took more than {COMPILE_TIMEOUT_S} s") from error
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            raise BuildError(f"{process.args!r} failed:\n{output[-2000:]}")
