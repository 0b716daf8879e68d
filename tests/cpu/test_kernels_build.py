"""The table of operations, and the cache of built libraries."""

import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ramify.kernels.cpu.build import BuildError, build
from ramify.kernels.dispatch import TABLE, load_ops
from ramify.kernels.ops import Ops

SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return %d; }\n'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE % 42)
    return path


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_implementation_has_the_signature_of_the_table(backend):
    ops = load_ops(backend)
    assert ops.backend == backend
    names = [name for name, _ in inspect.getmembers(Ops, inspect.isfunction) if name[0] != "_"]
    assert sorted(TABLE) == sorted(names)
    for name in TABLE:
        expected = list(inspect.signature(getattr(Ops, name)).parameters.values())[1:]
        assert list(inspect.signature(getattr(ops, name)).parameters.values()) == expected, name


def test_a_library_is_built_once_in_a_private_folder(cache, source):
    path = build("answer", [source], [])
    assert path.parent == cache
    assert cache.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o700
    before = path.stat().st_mtime_ns
    assert build("answer", [source], []) == path
    assert path.stat().st_mtime_ns == before
    assert [entry.name for entry in cache.iterdir()] == [path.name], "something was left behind"


def test_a_changed_source_or_header_is_another_library(cache, source, tmp_path):
    header = tmp_path / "answer.h"
    header.write_text("// one\n")
    first = build("answer", [source], [header])
    header.write_text("// two\n")
    second = build("answer", [source], [header])
    source.write_text(SOURCE % 43)
    assert len({first, second, build("answer", [source], [header])}) == 3


def test_builders_at_the_same_time_all_get_a_whole_library(cache, source):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(build("answer", [source], [])))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_folder_that_others_may_write_is_refused(cache, source):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(BuildError, match="writable by nobody else"):
        build("answer", [source], [])


def test_a_planted_library_is_refused(cache, source):
    path = build("answer", [source], [])
    path.chmod(0o777)
    with pytest.raises(BuildError, match="writable by nobody else"):
        build("answer", [source], [])
    path.unlink()
    path.symlink_to(source)
    with pytest.raises(BuildError, match="writable by nobody else"):
        build("answer", [source], [])


def test_a_source_that_does_not_compile_says_why(cache, source):
    source.write_text("this is not C++\n")
    with pytest.raises(BuildError, match="this is not C"):
        build("answer", [source], [])
    assert list(cache.iterdir()) == []


def test_no_compiler_is_said(cache, source, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="no-such-compiler is not on the PATH"):
        build("answer", [source], [])


PROGRAM = """
import logging, torch
logging.basicConfig()
from ramify.kernels.dispatch import load_ops
ops = load_ops("auto")
print(ops.backend, float(ops.rms_norm(torch.full((1, 8), 3.0), torch.ones(8), 0.0).mean()))
"""


def run_program(text, tmp_path, **environment):
    """A fresh process, because a library once loaded stays for the life of its process."""
    return subprocess.run(
        [sys.executable, "-P", "-c", text],
        env=os.environ | {"RAMIFY_CACHE": str(tmp_path / "cache")} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_a_broken_compiler_means_the_reference_and_a_warning(tmp_path):
    compiler = tmp_path / "broken-compiler"
    compiler.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = run_program(PROGRAM, tmp_path, CXX=str(compiler))
    assert done.stdout.split() == ["reference", "1.0"]
    assert done.stderr.count("WARNING") == 1
    assert "out of order" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts Linux's threads")
def test_the_library_starts_the_helpers_it_is_asked_for_and_no_openmp(tmp_path):
    """A second OpenMP runtime would be a second team of threads, spinning beside torch's."""
    text = """
import os, torch
from ramify.kernels.dispatch import load_ops
torch.set_num_threads(3)
big = torch.ones(512, 4096)
big + big  # starts torch's own
ops = load_ops("cpu")
before = len(os.listdir("/proc/self/task"))
for _ in range(20):
    ops.silu_mul(big)
print(len(os.listdir("/proc/self/task")) - before)
print(len({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line}))
"""
    home = Path(os.environ.get("RAMIFY_CACHE") or Path.home() / ".cache" / "ramify")
    done = run_program(text, tmp_path, RAMIFY_CACHE=str(home))
    helpers, openmp_libraries = done.stdout.split()
    assert helpers == "2"
    assert openmp_libraries == "1"  # torch's own


def test_loops_from_many_threads_at_once_all_give_the_right_result():
    """One caller has the helpers, the others compute alone; nobody waits for anybody."""
    ops = load_ops("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inputs = [torch.randn(300, 512, generator=seeded(i)) for i in range(8)]
        expected = [load_ops("reference").silu_mul(x) for x in inputs]
        with ThreadPoolExecutor(8) as callers:
            for _ in range(30):
                for got, want in zip(callers.map(ops.silu_mul, inputs), expected, strict=True):
                    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(threads)


def seeded(i):
    return torch.Generator().manual_seed(i)
