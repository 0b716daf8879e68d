"""`@function`: a Python function of a state becomes a program that can be run, batched, traced."""

import functools
import inspect
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from ramify.lang.backends.base import Backend
from ramify.lang.backends.resolve import backend_or_default
from ramify.lang.batch import progress, run_ordered
from ramify.lang.errors import ProgramError, original
from ramify.lang.executor import Executor
from ramify.lang.future import Value
from ramify.lang.global_config import global_config
from ramify.lang.ir import Argument
from ramify.lang.options import OPTION_NAMES, RUN_DEFAULTS, GenerateOptions, dtype_name
from ramify.lang.passes import constant_prefix
from ramify.lang.state import ProgramState
from ramify.lang.tracer import TracerProgramState, current_trace, trace_call, trace_prefix

MIN_CACHED_PREFIX_CHARS = 64  # a shorter prefix is not worth a request of its own
MIN_BATCH_THREADS = 96
GENERATOR_AHEAD = 200  # results of `generator_style` that may wait to be taken

Batch = Sequence[Mapping[str, Any] | tuple[Any, ...]]


class SglFunction:
    """A program: a function whose first parameter, `s`, is the state it appends to."""

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bind_arguments = dict(bind_arguments or {})
        self._signature = inspect.signature(func)
        names = list(self._signature.parameters)
        self.arg_names = names[1:]
        if names[:1] != ["s"]:
            raise TypeError(f"the first parameter of {func.__name__} must be called s")
        functools.update_wrapper(self, func)

    def bind(self, **kwargs: Any) -> "SglFunction":
        """The same program with some arguments fixed. Raises TypeError for unknown names."""
        for name in kwargs:
            if name not in self.arg_names:
                raise TypeError(f"{self.func.__name__} has no parameter {name!r}")
        return SglFunction(self.func, self.num_api_spec_tokens, self.bind_arguments | kwargs)

    def run(
        self,
        *args: Any,
        stream: bool = False,
        backend: Any = None,
        use_thread: bool = True,
        **kwargs: Any,
    ) -> ProgramState:
        """Run the program and return its state.

        Keywords are arguments of the function or options of `GenerateOptions`; a name that the
        function declares itself is the function's. Generations may still be pending on return:
        reads wait for them. With `stream` the function runs in a thread and the state is returned
        at once. Without `use_thread` each node runs in the caller before the next is appended.
        Raises what the function raises, unless it streams: then the state holds the error.
        """
        options, arguments = self._sort(kwargs)
        own = _for_one_run(backend_or_default(backend))
        executor = Executor(own, options, stream=stream, use_thread=use_thread)
        state = ProgramState(executor)
        call = self._call(state, args, arguments)
        if stream:
            executor.begin()
            target = functools.partial(
                executor.run_as_program, functools.partial(_finish, state, call)
            )
            threading.Thread(target=target, name="ramify-program", daemon=True).start()
        else:
            _finish(state, call)
        return state

    def run_batch(
        self,
        batch_kwargs: Batch,
        *,
        backend: Any = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **options: Any,
    ) -> Any:
        """Run the program once for each item; the finished states in the items' order.

        Items are dicts of arguments, or tuples of them in the order of the parameters. The text
        that all of them begin with is cached first. `generator_style` gives an iterator instead of
        a list. A failed generation does not end the batch: the state of its item holds the error.
        Any other exception of the function does, and is raised.
        """
        chosen = backend_or_default(backend)
        chosen_options, _ = self._sort(options, only_options=True)
        items = [self._arguments(item) for item in batch_kwargs]
        if not items:
            return iter(()) if generator_style else []
        if len(items) > 1 and global_config.enable_precache_with_tracing:
            self.cache(chosen)
        jobs = [functools.partial(self._run_item, chosen, chosen_options, item) for item in items]
        threads = _threads(num_threads, len(jobs))
        ahead = max(GENERATOR_AHEAD, 2 * threads) if generator_style else len(jobs)
        states = _with_progress(jobs, threads, ahead, progress_bar)
        return states if generator_style else list(states)

    def trace(self, *, backend: Any = None, **kwargs: Any) -> TracerProgramState:
        """What the program would append, with symbols for the arguments that are not given.

        Raises TypeError when the function looks into a symbol. `backend` is not used.
        """
        return trace_call(self._traced(kwargs))

    def cache(self, backend: Any = None) -> None:
        """Have the backend compute the constant text that every run begins with, if it is long.

        To find it, the function is run on symbols up to the first node that is not constant.
        """
        chosen = backend_or_default(backend)
        prefix = constant_prefix(trace_prefix(self._traced({})), chosen.chat_template)
        if len(prefix) > MIN_CACHED_PREFIX_CHARS:
            chosen.commit(prefix)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`run`; inside a trace, `trace`; on a state as the first argument, the bare function."""
        if args and isinstance(args[0], ProgramState | TracerProgramState):
            return self.func(*args, **(kwargs | self.bind_arguments))
        if current_trace.get() is None:
            return self.run(*args, **kwargs)
        _, arguments = self._sort(kwargs)
        return self.trace(**dict(zip(self.arg_names, args, strict=False)) | arguments)

    # --- arguments ---

    def _sort(
        self, kwargs: Mapping[str, Any], *, only_options: bool = False
    ) -> tuple[GenerateOptions, dict[str, Any]]:
        """Keywords as complete options and arguments. Raises TypeError for neither."""
        options: dict[str, Any] = {}
        arguments: dict[str, Any] = {}
        for name, value in kwargs.items():
            is_option = name in OPTION_NAMES and (only_options or name not in self.arg_names)
            (options if is_option else arguments)[name] = value
        if only_options and arguments:
            raise TypeError(f"run_batch has no option {next(iter(arguments))!r}")
        if "dtype" in options:
            options["dtype"] = dtype_name(options["dtype"])
        return GenerateOptions(**options).over(_defaults()), arguments

    def _call(
        self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Callable[[], Any]:
        """The call of the function. Raises TypeError now for arguments that do not fit."""
        bound = self._signature.bind(state, *args, **(dict(kwargs) | self.bind_arguments))
        return functools.partial(self.func, *bound.args, **bound.kwargs)

    def _arguments(self, item: Mapping[str, Any] | tuple[Any, ...]) -> dict[str, Any]:
        """One item of a batch, by name. Raises TypeError when it does not fit the parameters."""
        free = [name for name in self.arg_names if name not in self.bind_arguments]
        if not isinstance(item, Mapping):
            if len(item) > len(free):
                raise TypeError(f"an item has {len(item)} values for {len(free)} parameters")
            item = dict(zip(free, item, strict=False))
        self._call(None, (), item)
        return dict(item)

    def _traced(self, given: Mapping[str, Any]) -> Callable[[TracerProgramState], Any]:
        symbols = {name: Argument(name) for name in self.arg_names}
        arguments = symbols | dict(given) | self.bind_arguments
        return lambda state: self.func(state, **arguments)

    def _run_item(
        self, backend: Backend, options: GenerateOptions, arguments: Mapping[str, Any]
    ) -> ProgramState:
        state = ProgramState(Executor(_for_one_run(backend), options))
        try:
            _finish(state, self._call(state, (), arguments))
        except ProgramError as error:
            state.executor.fail(original(error))
        state.sync()
        return state


def _for_one_run(backend: Backend) -> Backend:
    """The backend for one run of a program and its branches, which have an id in common."""
    return backend.for_program(uuid.uuid4().hex)


def _finish(state: ProgramState, call: Callable[[], Any]) -> Value:
    """Call the function for a state and keep what it returns."""
    state.ret_value = call()
    if global_config.verbosity >= 2:
        print(state.text())
    return Value(state.ret_value)


def _defaults() -> GenerateOptions:
    """The defaults of a run, with what the process wants for all of them."""
    config = global_config
    return GenerateOptions(
        skip_special_tokens=None if config.skip_special_tokens_in_output else False,
        spaces_between_special_tokens=(
            None if config.spaces_between_special_tokens_in_out else False
        ),
    ).over(RUN_DEFAULTS)


def _threads(wanted: int | str, items: int) -> int:
    """How many programs run at a time. Raises ValueError for what is neither "auto" nor > 0."""
    if wanted == "auto":
        wanted = max(MIN_BATCH_THREADS, 16 * (os.cpu_count() or 1))
    if not isinstance(wanted, int) or wanted < 1:
        raise ValueError(f'num_threads is "auto" or at least 1, got {wanted!r}')
    return min(wanted, items)


def _with_progress(
    jobs: Sequence[Callable[[], ProgramState]], threads: int, ahead: int, shown: bool
) -> Iterator[ProgramState]:
    with progress(len(jobs), shown=shown) as done:
        yield from run_ordered(jobs, threads=threads, ahead=ahead, done=done)


@overload
def function(func: Callable[..., Any]) -> SglFunction: ...
@overload
def function(
    func: None = None, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[..., Any]], SglFunction]: ...
def function(
    func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None
) -> SglFunction | Callable[[Callable[..., Any]], SglFunction]:
    """Decorator that makes a program of a function; with or without parentheses.

    `num_api_spec_tokens` is kept and changes nothing yet.
    """
    if func is not None:
        return SglFunction(func, num_api_spec_tokens)
    return lambda func: SglFunction(func, num_api_spec_tokens)
