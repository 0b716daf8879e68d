"""A strict reader of Prometheus's text format 0.0.4: whatever is not exactly right, it refuses."""

import re
from itertools import pairwise

HEAD = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (\S.*)")
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^{}]+)\})? (-?[0-9.]+(?:e[+-]?[0-9]+)?)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"')
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}

Series = tuple[str, tuple[tuple[str, str], ...]]


def read(page: str) -> dict[Series, float]:
    """The value of each series, by name and labels. Raises AssertionError."""
    assert page.endswith("\n")
    assert not page.endswith("\n\n")
    samples: dict[Series, float] = {}
    kinds: dict[str, str] = {}
    name = ""
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith("#"):
            name, kinds[name] = _heads(line, next(lines), kinds)
            continue
        series, value = _sample(line)
        suffix = series[0].removeprefix(name)
        assert series[0].startswith(name), f"{line} is not of the family {name}"
        assert suffix in SUFFIXES[kinds[name]], line
        assert series not in samples, f"{series} is there twice"
        assert kinds[name] != "counter" or value >= 0
        samples[series] = value
    for name, kind in kinds.items():
        assert (kind == "counter") == name.endswith("_total"), name
        if kind == "histogram":
            _check_histogram(name, samples)
        else:
            assert any(series[0] == name for series in samples), f"{name} has no sample"
    return samples


def _heads(first: str, second: str, known: dict[str, str]) -> tuple[str, str]:
    about, kind = HEAD.fullmatch(first), HEAD.fullmatch(second)
    assert about, first
    assert kind, second
    assert (about[1], kind[1]) == ("HELP", "TYPE")
    assert about[2] == kind[2]
    assert about[2] not in known, "a family must be in one place"
    assert kind[3] in SUFFIXES, kind[3]
    return kind[2], kind[3]


def _sample(line: str) -> tuple[Series, float]:
    match = SAMPLE.fullmatch(line)
    assert match, line
    labels = []
    for part in match[2].split(",") if match[2] else ():
        label = LABEL.fullmatch(part)
        assert label, line
        labels.append((label[1], label[2]))
    return (match[1], tuple(labels)), float(match[3])


def _check_histogram(name: str, samples: dict[Series, float]) -> None:
    buckets = [(labels, value) for (n, labels), value in samples.items() if n == f"{name}_bucket"]
    bounds = []
    for labels, _ in buckets:
        ((label, bound),) = labels
        assert label == "le"
        bounds.append(float(bound))
    assert all(a < b for a, b in pairwise(bounds)), bounds
    assert all(a[1] <= b[1] for a, b in pairwise(buckets)), "buckets are cumulative"
    assert buckets[-1] == ((("le", "+Inf"),), samples[f"{name}_count", ()])
    assert samples[f"{name}_sum", ()] >= 0
