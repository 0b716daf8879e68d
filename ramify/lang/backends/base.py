"""The seam between programs and models.

`Backend` is what the executor needs. `EngineLike` is the shape of an engine: whatever has it is
wrapped into a Backend by `local.EngineBackend`, whether it is in this process, behind HTTP, or a
script. Both are used from many threads at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ramify.lang.chat_template import ChatTemplate
from ramify.lang.choices import Triples
from ramify.lang.chunks import Chunk
from ramify.lang.options import GenerateOptions


@dataclass(frozen=True)
class Scores:
    """Of each choice: the mean log-probability, and the entries of the tokens it was taken over.

    The counts are of all requests that the scores took.
    """

    normalized: list[float]
    input_token_logprobs: list[Triples]
    output_token_logprobs: list[Triples]
    unconditional: list[Triples] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Backend(Protocol):
    """Executes generations. All methods raise RuntimeError or an error of the engine's own."""

    @property
    def chat_template(self) -> ChatTemplate:
        """The markup of messages for this model."""

    def for_program(self, program_id: str) -> "Backend":
        """The same backend for one run of a program: it tells the engine what belongs together."""

    def get_model_name(self) -> str:
        """The model's path or name."""

    def generate(self, prompt: str, options: GenerateOptions) -> list[Chunk]:
        """`n` completions of a prompt."""

    def stream(self, prompt: str, options: GenerateOptions) -> Iterator[Chunk]:
        """One completion, piece by piece. Closing the iterator early ends the request."""

    def score(self, prompt: str, choices: Sequence[str], *, unconditional: bool) -> Scores:
        """Log-probabilities of each choice after the prompt, and alone if `unconditional`."""

    def commit(self, prompt: str) -> None:
        """Compute and cache the text now: several requests that begin with it are coming."""

    def flush_cache(self) -> bool:
        """Forget everything cached. False when that is not possible now."""

    def server_info(self) -> dict[str, Any]:
        """What the server tells about itself."""


class EngineLike(Protocol):
    """The shape of an engine.

    `generate` answers one prompt with `{"text", "output_ids", "meta_info"}`; a list of prompts or
    `n` > 1 with a list of them; `stream=True` with an iterator of them with cumulative text. The
    option `program_id` is the same for all requests of one run of a program.
    """

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any: ...

    def model_info(self) -> dict[str, Any]: ...

    def flush_cache(self) -> bool: ...

    def server_info(self) -> dict[str, Any]: ...
