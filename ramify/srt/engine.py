"""`Engine`: the runtime inside one process, without HTTP and without ZMQ.

The same loop, scheduler and replies as behind the server, for notebooks, tests and batch jobs. The
loop has a thread of its own; callers may be on any thread or in asyncio.
"""

import asyncio
import itertools
import queue
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import msgspec

from ramify.srt import intake, replies
from ramify.srt.clock import MonotonicClock
from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.errors import InvalidRequest, Unavailable
from ramify.srt.messages import (
    Finished,
    Flush,
    Flushed,
    Inspect,
    Inspected,
    Pin,
    Pinned,
    Rejected,
    ShowTree,
    Tokens,
    TreeShown,
    Unpin,
)
from ramify.srt.replies import ReplyAssembler
from ramify.srt.tokenization.tokenizer import Tokenizer
from ramify.srt.weights.source import prepare
from ramify.srt.workers.engine_loop import Core
from ramify.srt.workers.engine_thread import Answer, Call, EngineThread

Reply = dict[str, Any]


class Engine:
    """Generates text with a model, from any thread and from asyncio.

    `options` are those of `EngineConfig`. Close it with `shutdown`, or use it as a context
    manager. Raises ConfigError or ModelLoadError when it cannot start.
    """

    def __init__(self, model: str = "smollm2", **options: Any) -> None:
        from ramify.srt.workers.loading import load_prepared  # the only import of torch here

        config = EngineConfig(model=model, **options)
        check_engine(config)
        folder = prepare(model)
        tokenizer = Tokenizer.load(folder.path) if folder.has_tokenizer else None
        core = load_prepared(config, folder)
        self._serve(core, tokenizer, config, folder.name, str(folder.path))

    @classmethod
    def over(
        cls, core: Core, tokenizer: Tokenizer | None = None, config: EngineConfig | None = None
    ) -> Self:
        """An engine over a core that is already there."""
        engine = cls.__new__(cls)
        config = config or EngineConfig()
        engine._serve(core, tokenizer, config, config.model, config.model)
        return engine

    def _serve(
        self, core: Core, tokenizer: Tokenizer | None, config: EngineConfig, name: str, path: str
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._info = core.info
        self._name, self._path = name, path
        self._clock = MonotonicClock()
        self._new_seed = intake.seed_source(config.seed)
        self._call_ids = itertools.count()
        self._thread = EngineThread(core, self._clock)
        self._finalizer = weakref.finalize(self, self._thread.close)

    # --- generating ---

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        rid: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Reply | list[Reply] | Iterator[Reply]:
        """The reply to a prompt, or a list of them for a list of prompts or `n` > 1.

        With `stream`, an iterator of replies so far (text is cumulative; with several sequences
        each has its `index`); leaving it early aborts. Beside the fields of `SamplingParams`,
        `sampling_params` take one constraint of the output: `regex`, `json_schema` or
        `structural_tag` (text or an object), `ebnf`. `options` are those of
        `intake.generate_requests`: `return_logprob`, `logprob_start_len`, `top_logprobs_num`,
        `return_text_in_logprobs`, `namespace`, `priority`, `program_id`, `timeout_s`,
        `require_reasoning`: the output begins with thinking, to which the constraint does not
        apply. Raises a RequestError.
        """
        call = self._call(prompt, sampling_params, input_ids, rid, options)
        if stream:
            return self._stream(call)
        for _ in self._stream(call, quiet=True):
            pass
        return call.result()

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        rid: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Reply | list[Reply] | AsyncIterator[Reply]:
        """As `generate`, for asyncio: `stream` gives an async iterator. Cancellation aborts."""
        call = await asyncio.to_thread(self._call, prompt, sampling_params, input_ids, rid, options)
        if stream:
            return self._async_stream(call)
        async for _ in self._async_stream(call, quiet=True):
            pass
        return call.result()

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        sampling_params: dict[str, Any] | None = None,
        *,
        enable_thinking: bool | None = None,
        **options: Any,
    ) -> Reply | list[Reply] | Iterator[Reply]:
        """The reply to a conversation, put into the model's chat template. See `generate`.

        The template is told `enable_thinking`, if it is given. With a reasoning parser, and unless
        it is False, `require_reasoning` is True if left out.
        """
        if self._tokenizer is None or self._tokenizer.chat is None:
            raise InvalidRequest("this model has no chat template", param="messages")
        told = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        thinks = self._info.reasoning_parser is not None and enable_thinking is not False
        options = {"require_reasoning": thinks} | options
        text = self._tokenizer.chat.render(list(messages), add_generation_prompt=True, **told)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return self.generate(sampling_params=sampling_params, input_ids=ids, **options)

    def abort(self, rid: str) -> None:
        """End a running request; whoever waits for it gets what there is. Unknown ids: nothing."""
        self._thread.abort([rid])

    # --- the engine itself ---

    def flush_cache(self) -> bool:
        """Forget every cached prefix. False, and nothing done, while requests run or wait."""
        answer = self._ask(Flush(next(self._call_ids)))
        return isinstance(answer, Flushed) and answer.done

    def pin_prefix(
        self,
        text: str | None = None,
        input_ids: Sequence[int] | None = None,
        *,
        ttl_s: float,
        namespace: str = "",
    ) -> int:
        """Keep the computed part of a prefix from eviction for `ttl_s` seconds; its tokens.

        Nothing is computed: `generate` with `max_new_tokens` 0 does that. Raises InvalidRequest,
        also when pins would hold more of the cache than they may.
        """
        intake.check_ttl(ttl_s)
        packed = intake.prefix_ids(text, input_ids, namespace, self._tokenizer, self._info)
        answer = self._ask(Pin(next(self._call_ids), packed, namespace, ttl_s))
        assert isinstance(answer, Pinned)
        return replies.pinned_tokens(answer)

    def unpin_prefix(
        self,
        text: str | None = None,
        input_ids: Sequence[int] | None = None,
        *,
        namespace: str = "",
    ) -> int:
        """Give up the pin of exactly this prefix; the tokens it held, 0 if there is none."""
        packed = intake.prefix_ids(text, input_ids, namespace, self._tokenizer, self._info)
        answer = self._ask(Unpin(next(self._call_ids), packed, namespace))
        assert isinstance(answer, Pinned)
        return replies.pinned_tokens(answer)

    def cache_tree(self, limit: int = 100) -> dict[str, Any]:
        """The shape of the cache, without contents: nodes, the most recently used first."""
        intake.check_tree_limit(limit)
        answer = self._ask(ShowTree(next(self._call_ids), limit))
        assert isinstance(answer, TreeShown)
        return replies.cache_tree(answer)

    def model_info(self) -> dict[str, Any]:
        """What the model is: path, names, sizes, end tokens, chat template."""
        return replies.model_info(self._info, self._path, self._name, self._tokenizer)

    def server_info(self) -> dict[str, Any]:
        """The options, the engine's counters, and the invariants that are broken, in words."""
        answer = self._ask(Inspect(next(self._call_ids)))
        assert isinstance(answer, Inspected)
        stats = msgspec.structs.asdict(answer.stats)
        return {**asdict(self._config), "stats": stats, "violations": answer.violations}

    def get_tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None for a dummy model without one."""
        return self._tokenizer

    def shutdown(self) -> None:
        """Abort what runs and end the engine's thread. Calling it again does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    # --- inside ---

    def _call(
        self, prompt: Any, sampling: Any, input_ids: Any, rid: Any, options: dict[str, Any]
    ) -> "_Call":
        requests, single = intake.generate_requests(
            text=prompt, input_ids=input_ids, sampling=sampling, **options
        )
        assemblers = []
        for request, new_id in zip(
            requests, intake.id_sources(rid, None if single else len(requests)), strict=True
        ):
            assemblers += [
                ReplyAssembler(
                    submit,
                    self._tokenizer,
                    self._info,
                    now=self._clock.now(),
                    return_text_in_logprobs=request.return_text_in_logprobs,
                )
                for submit in intake.to_submits(
                    request, self._tokenizer, self._info, new_id, self._new_seed
                )
            ]
        return _Call(assemblers, single and len(assemblers) == 1)

    def _stream(self, call: "_Call", quiet: bool = False) -> Iterator[Reply]:
        """Replies so far as they come; none when `quiet`."""
        mailbox: queue.SimpleQueue[Answer | Unavailable] = queue.SimpleQueue()
        self._thread.open(mailbox.put, call.submits)
        try:
            while call.open:
                assembler = self._push(call, mailbox.get())
                if not quiet:
                    yield call.reply(assembler)
        finally:
            self._thread.abort(call.open)

    async def _async_stream(self, call: "_Call", quiet: bool = False) -> AsyncIterator[Reply]:
        loop = asyncio.get_running_loop()
        mailbox: asyncio.Queue[Answer | Unavailable] = asyncio.Queue()

        def post(answer: Answer | Unavailable) -> None:
            with suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
                loop.call_soon_threadsafe(mailbox.put_nowait, answer)

        self._thread.open(post, call.submits)
        try:
            while call.open:
                assembler = self._push(call, await mailbox.get())
                if not quiet:
                    yield call.reply(assembler)
        finally:
            self._thread.abort(call.open)

    def _push(self, call: "_Call", answer: Answer | Unavailable) -> ReplyAssembler:
        """Fold an answer in. Raises what it reports; aborts what a stop string has ended."""
        if isinstance(answer, Unavailable):
            raise answer
        assert isinstance(answer, Tokens | Finished | Rejected)
        assembler = call.open[answer.request_id]
        stopped = assembler.wants_abort
        if not isinstance(answer, Tokens):
            del call.open[answer.request_id]
        assembler.push(answer, self._clock.now())
        if assembler.wants_abort and not stopped:
            self._thread.abort([answer.request_id])
        return assembler

    def _ask(self, message: Call) -> Answer:
        mailbox: queue.SimpleQueue[Answer | Unavailable] = queue.SimpleQueue()
        self._thread.open(mailbox.put, [message])
        answer = mailbox.get()
        if isinstance(answer, Unavailable):
            raise answer
        return answer


class _Call:
    """The sequences of one `generate`. `open` holds those that have not ended."""

    def __init__(self, assemblers: list[ReplyAssembler], single: bool) -> None:
        self._assemblers = assemblers
        self._single = single
        self._index = {assembler.submit.request_id: i for i, assembler in enumerate(assemblers)}
        self.submits = [assembler.submit for assembler in assemblers]
        self.open = {assembler.submit.request_id: assembler for assembler in assemblers}

    def reply(self, assembler: ReplyAssembler) -> Reply:
        reply = assembler.reply()
        return (
            reply if self._single else {**reply, "index": self._index[assembler.submit.request_id]}
        )

    def result(self) -> Reply | list[Reply]:
        made = [assembler.reply() for assembler in self._assemblers]
        return made[0] if self._single else made
