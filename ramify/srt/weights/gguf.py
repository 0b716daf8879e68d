"""One GGUF file to one folder in Hugging Face's layout: config, tokenizer, bfloat16 weights."""

import json
from pathlib import Path
from typing import Any

import gguf

from ramify.srt.errors import ModelLoadError
from ramify.srt.tokenization.from_gguf import write_tokenizer
from ramify.srt.weights.gguf_config import generation_config, model_config
from ramify.srt.weights.gguf_tensors import write_weights


def convert(file: Path, folder: Path) -> None:
    """Write the model in `file` to `folder`, an existing one.

    Reads the file memory-mapped and holds one tensor at a time. Raises ModelLoadError for what
    is not a GGUF file, and for architectures, scalings and number types that are not supported.
    """
    try:
        reader = gguf.GGUFReader(str(file))
    except (OSError, ValueError, IndexError, KeyError) as error:  # what a cut or wrong file raises
        raise ModelLoadError(f"{file} is not a readable GGUF file: {error}") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = model_config(metadata, tensors)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_config(metadata))
    write_tokenizer(metadata, folder)
    write_weights(tensors, config, folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
