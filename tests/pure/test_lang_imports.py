"""The language stays light: who only talks to a server must not load torch or the server."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "httpx", "rich", "jinja2", "numpy", "asyncio", "ramify.srt", "fastapi", "zmq")
PROBE = """
import json, sys, time
before = set(sys.modules)
start = time.process_time()
import {module}
{use}
took = time.process_time() - start
print(json.dumps([took, sorted(set(sys.modules) - before)]))
"""


@pytest.mark.parametrize(
    ("module", "use"),
    [("ramify", ""), ("ramify.lang", ""), ("ramify", "ramify.gen; ramify.RuntimeEndpoint")],
)
def test_imports_are_light(module, use):
    command = [sys.executable, "-c", PROBE.format(module=module, use=use)]
    runs = []
    for _ in range(3):  # the best of three, in processor time: the machine may be busy
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    loaded = runs[0][1]
    assert [name for name in HEAVY if name in loaded] == []
    assert min(took for took, _ in runs) < 0.1, "seconds"
