"""A Backend out of anything that has the shape of an engine."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

from ramify.lang.backends import scoring
from ramify.lang.backends.base import EngineLike, Scores
from ramify.lang.chat_template import ChatTemplate, get_chat_template
from ramify.lang.chunks import Chunk, increments
from ramify.lang.jinja_template import choose_template
from ramify.lang.options import GenerateOptions

NO_TOKENS = {"max_new_tokens": 0, "temperature": 0.0}


class ProgramEngine:
    """An engine as one program sees it: what it is asked carries the program's id."""

    def __init__(self, engine: EngineLike, program_id: str) -> None:
        self._engine = engine
        self._program_id = program_id

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """As the engine's."""
        options["program_id"] = self._program_id
        return self._engine.generate(prompt, sampling_params, **options)

    def model_info(self) -> dict[str, Any]:
        """As the engine's."""
        return self._engine.model_info()

    def flush_cache(self) -> bool:
        """As the engine's."""
        return self._engine.flush_cache()

    def server_info(self) -> dict[str, Any]:
        """As the engine's."""
        return self._engine.server_info()


class EngineBackend:
    """Speaks to an engine in its own requests and replies.

    `chat_template_name` takes a named template instead of the model's own.
    """

    def __init__(self, engine: EngineLike, chat_template_name: str | None = None) -> None:
        self.engine = engine
        self._named = get_chat_template(chat_template_name) if chat_template_name else None

    @cached_property
    def model_info(self) -> dict[str, Any]:
        """What the engine tells about its model, asked once."""
        return self.engine.model_info()

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The template that was named, else the model's own, else the one for its path."""
        return self._named or choose_template(self.model_info)

    def for_program(self, program_id: str) -> "EngineBackend":
        """The same backend, all of whose requests carry the id of one program."""
        _ = self.chat_template  # asked for once, not by each program
        bound = copy.copy(self)
        bound.engine = ProgramEngine(self.engine, program_id)
        return bound

    def get_model_name(self) -> str:
        """The model's path."""
        return str(self.model_info.get("model_path", ""))

    def generate(self, prompt: str, options: GenerateOptions) -> list[Chunk]:
        """`n` completions."""
        replies = self.engine.generate(
            prompt, options.sampling_params(), **options.request_fields()
        )
        replies = replies if isinstance(replies, list) else [replies]
        return [Chunk(reply["text"], reply["meta_info"]) for reply in replies]

    def stream(self, prompt: str, options: GenerateOptions) -> Iterator[Chunk]:
        """One completion, as increments."""
        replies = self.engine.generate(
            prompt, options.sampling_params(), stream=True, **options.request_fields()
        )
        with closing(replies):
            yield from increments(replies)

    def score(self, prompt: str, choices: Sequence[str], *, unconditional: bool) -> Scores:
        """Three requests at most: the prompt, all choices after it, all choices alone."""
        return scoring.score(self.engine, prompt, choices, unconditional=unconditional)

    def commit(self, prompt: str) -> None:
        """Compute and cache the text, generate nothing."""
        self.engine.generate(prompt, dict(NO_TOKENS))

    def flush_cache(self) -> bool:
        """Forget everything cached."""
        return self.engine.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        """`server_info` under SGLang's name."""
        return self.server_info()

    def server_info(self) -> dict[str, Any]:
        """What the engine tells about itself."""
        return self.engine.server_info()
