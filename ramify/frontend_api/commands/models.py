"""`ramify models`: which models can be named, and which of them are here already."""

import argparse
from pathlib import Path

from ramify.srt.weights.cache_folder import cache_folder
from ramify.srt.weights.source import known_models

FORMS = (
    ("FOLDER", "a Hugging Face model folder: config.json, safetensors, tokenizer"),
    ("FILE.gguf", "a GGUF file, converted once"),
    ("ORG/NAME", "a Hugging Face hub id, downloaded once"),
    ("dummy:PATH", "random weights for a config.json, to measure with"),
)


def run(parsed: argparse.Namespace) -> int:
    """The subcommand. Returns the exit code."""
    here = _converted(cache_folder())
    rows = [("name", "here", "what it is")]
    for name, description in known_models():
        sizes = [_mib(size) for folder, size in here if folder.startswith(f"{name}-")]
        rows.append((name, sizes[0] if sizes else "-", description))
    rows += [(form, "", description) for form, description in FORMS]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, size, what in rows:
        print(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {what}")
    print(f"\nconverted models are kept in {cache_folder()}")
    for folder, size_bytes in here:
        print(f"  {folder}  {_mib(size_bytes)}")
    return 0


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


def _converted(cache: Path) -> list[tuple[str, int]]:
    """(name, bytes) of the finished conversions."""
    folders = sorted(path for path in cache.glob("models-*/*") if (path / "config.json").is_file())
    return [
        (path.name, sum(file.stat().st_size for file in path.iterdir() if file.is_file()))
        for path in folders
    ]
