"""An engine that follows a script: for tests and examples that need no model. Deterministic.

Its tokens are words with the space before them, single spaces and signs; prompts and outputs are
remembered, so that `cached_tokens` counts as a real cache would.
"""

import re
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ramify.lang.options import as_strings

Reply = str | list[str] | Exception
Script = Mapping[str, Reply] | Callable[[str], Reply]
LogProb = Callable[[str, str], float]
MAX_SEEN = 256  # texts that are remembered as cached
TOKEN = re.compile(r"\s?\w+|\s|[^\w\s]")


def tokens_of(text: str) -> list[str]:
    """The text cut into tokens."""
    return TOKEN.findall(text)


def by_checksum(_: str, token: str) -> float:
    """A log-probability that depends on the token alone."""
    return -(zlib.crc32(token.encode()) % 1000) / 100


class ScriptedEngine:
    """Answers a prompt by the longest key of `script` that it ends with, or by calling `script`.

    An answer is the text that the model would write if nothing stopped it; a list has one for each
    of `n` completions, in turn; an exception is raised. `logprob` gives the log-probability of a
    token after a text. Raises LookupError for a prompt that the script does not foresee.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        logprob: LogProb = by_checksum,
        **model_info: Any,
    ) -> None:
        self.requests: list[dict[str, Any]] = []  # all that were made, for tests
        self._script = {"": "ok"} if script is None else script
        self._logprob = logprob
        self._info = {"model_path": "scripted", "chat_template": None} | model_info
        self._ids: dict[str, int] = {}
        self._seen: deque[list[str]] = deque(maxlen=MAX_SEEN)
        self._lock = threading.Lock()

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | None = None,
        *,
        input_ids: list[int] | list[list[int]] | None = None,
        return_logprob: bool = False,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        return_text_in_logprobs: bool = False,
        program_id: str = "",
        stream: bool = False,
    ) -> Any:
        """Replies in the form of an engine's. Streams token by token."""
        params = sampling_params or {}
        start = logprob_start_len if return_logprob else None
        with self._lock:
            request = {"prompt": prompt, "input_ids": input_ids, "sampling_params": params}
            others = {"logprob_start_len": start, "stream": stream, "program_id": program_id}
            self.requests.append(request | others)
        texts = self._texts(prompt, input_ids)
        count = params.get("n") or 1
        replies = [
            self._reply(text, params, index, return_logprob, start)
            for text in texts
            for index in range(count)
        ]
        if stream:
            return self._stream(replies[0])
        single = isinstance(prompt, str) or bool(input_ids and isinstance(input_ids[0], int))
        return replies[0] if single and count == 1 else replies

    def model_info(self) -> dict[str, Any]:
        """What was given at construction."""
        return dict(self._info)

    def server_info(self) -> dict[str, Any]:
        """The number of requests so far."""
        return {"requests": len(self.requests)}

    def flush_cache(self) -> bool:
        """Forget what was seen."""
        with self._lock:
            self._seen.clear()
        return True

    # --- one reply ---

    def _texts(self, prompt: Any, input_ids: Any) -> list[str]:
        if input_ids is None:
            return [prompt] if isinstance(prompt, str) else list(prompt)
        rows = input_ids if isinstance(input_ids[0], list) else [input_ids]
        names = {number: token for token, number in self._ids.items()}
        return ["".join(names[number] for number in row) for row in rows]

    def _reply(
        self, prompt: str, params: dict[str, Any], index: int, logprobs: bool, start: int | None
    ) -> dict[str, Any]:
        written, reason = self._write(prompt, params, index)
        tokens = tokens_of(prompt)
        meta: dict[str, Any] = {
            "id": f"scripted-{len(self.requests)}-{index}",
            "prompt_tokens": len(tokens),
            "completion_tokens": len(tokens_of(written)),
            "cached_tokens": self._remember(tokens, tokens_of(written)),
            "jump_forward_tokens": 0,
            "finish_reason": reason,
        }
        if logprobs:
            meta["input_token_logprobs"] = self._prompt_entries(tokens, start)
            meta["output_token_logprobs"] = self._entries(prompt, tokens_of(written))
        return {
            "text": written,
            "output_ids": [self._id(token) for token in tokens_of(written)],
            "meta_info": meta,
        }

    def _write(self, prompt: str, params: dict[str, Any], index: int) -> tuple[str, dict[str, Any]]:
        """The text and why it ends: at the length limit, a stop string, or by itself."""
        limit = params.get("max_new_tokens", 128)
        text, reason = "", {"type": "length", "length": limit}
        if limit != 0:
            tokens = tokens_of(self._answer(prompt, index))
            text = "".join(tokens[:limit])
            if limit is None or len(tokens) <= limit:
                reason = {"type": "stop", "matched": 0}
        found = [(text.find(s), s) for s in as_strings(params.get("stop")) if s in text]
        if found:
            place, stop = min(found)
            return text[:place], {"type": "stop", "matched": stop}
        return text, reason

    def _answer(self, prompt: str, index: int) -> str:
        if isinstance(self._script, Mapping):
            endings = [ending for ending in self._script if prompt.endswith(ending)]
            if not endings:
                raise LookupError(f"no script for a prompt that ends in {prompt[-60:]!r}")
            answer = self._script[max(endings, key=len)]
        else:
            answer = self._script(prompt)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else answer[index % len(answer)]

    def _remember(self, prompt: list[str], output: list[str]) -> int:
        """Keep the tokens as cached; how many of the prompt's were, at most all but the last."""
        with self._lock:
            cached = max((_common(prompt, seen) for seen in self._seen), default=0)
            self._seen.append(prompt + output[:-1])
        return max(min(cached, len(prompt) - 1), 0)

    def _prompt_entries(self, tokens: list[str], start: int | None) -> list[list[Any]]:
        if start is None or start < 0:
            return []
        entries = self._entries("".join(tokens[:start]), tokens[start:])
        if entries:
            entries[0][0] = None  # nothing before it was computed
        return entries

    def _entries(self, before: str, tokens: list[str]) -> list[list[Any]]:
        entries: list[list[Any]] = []
        for token in tokens:
            entries.append([self._logprob(before, token), self._id(token), token])
            before += token
        return entries

    def _id(self, token: str) -> int:
        with self._lock:
            return self._ids.setdefault(token, len(self._ids) + 1)

    def _stream(self, reply: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The reply token by token: cumulative texts, ids and log-probabilities."""
        tokens, final = tokens_of(reply["text"]), reply["meta_info"]
        for count in range(1, len(tokens) + 1):
            meta = final | {"completion_tokens": count, "finish_reason": None}
            if "output_token_logprobs" in meta:
                meta["output_token_logprobs"] = meta["output_token_logprobs"][:count]
            ids = reply["output_ids"][:count]
            yield {"text": "".join(tokens[:count]), "output_ids": ids, "meta_info": meta}
        yield reply


def _common(a: list[str], b: list[str]) -> int:
    """Length of the common prefix."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
