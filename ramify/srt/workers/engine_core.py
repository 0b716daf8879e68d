"""Scheduler and runner as one: all of an engine but its loop and its sockets."""

import dataclasses
import logging
import time

import torch

from ramify.kernels.cpu.threads import set_threads
from ramify.kernels.dispatch import load_ops
from ramify.radix_cache import eviction
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.kv_pool import KvPool
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.clock import Clock, MonotonicClock
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError
from ramify.srt.execution.memory import pool_pages
from ramify.srt.execution.model_runner import Ahead, ModelRunner, Pending, Runner
from ramify.srt.messages import (
    EngineStats,
    ModelInfo,
    Pin,
    Pinned,
    Rejected,
    ShowTree,
    Submit,
    ToFrontend,
    TreeNode,
    TreeShown,
    Unpin,
)
from ramify.srt.models.config import ModelConfig
from ramify.srt.models.llama import LlamaModel
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import StepPlan
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.weights.reader import open_source
from ramify.srt.weights.source import ModelFolder

logger = logging.getLogger(__name__)

BAD_IDS = "token_ids must hold 4 bytes for each token"


class EngineCore:
    """Decide, do, learn: `step` is one turn of it."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        info: ModelInfo,
        clock: Clock,
        *,
        overlap: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.info = info
        self._clock = clock
        self._overlap = overlap  # whether one step runs while the next is planned: this one
        self._in_flight: tuple[StepPlan, Pending] | None = None

    @classmethod
    def load(cls, config: EngineConfig, folder: ModelFolder) -> "EngineCore":
        """Load a prepared model. Raises ModelLoadError or ConfigError."""
        began = time.monotonic()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        set_threads(torch.get_num_threads())
        model_config = ModelConfig.from_hf(
            folder.config(), folder.generation_config(), config.context_length
        )
        dtype = _dtype(config.dtype)
        with torch.inference_mode():
            source = open_source(folder, config.seed or 0)
            ops = load_ops(config.attention_backend)  # type: ignore[arg-type]  # checked at the edge
            model = LlamaModel(model_config, source, ops, dtype)
        if config.deterministic and not model.rows_are_independent:
            raise ConfigError(
                "deterministic needs the C++ kernels, on a CPU without AMX: here a row's result "
                "depends on the rows beside it"
            )
        n_pages = pool_pages(config, model_config, dtype)
        pool = KvPool(
            model_config.n_layers,
            n_pages,
            model_config.n_kv_heads,
            config.page_size,
            model_config.head_dim,
            dtype,
        )
        context = min(model_config.context_length, n_pages * config.page_size)
        info = ModelInfo(
            vocab_size=model_config.vocab_size,
            context_length=context,
            eos_token_ids=model_config.eos_token_ids,
            dtype=str(dtype).removeprefix("torch."),
            device=config.device,
            architecture=model_config.architecture,
            weight_bytes=model.weight_bytes,
            kv_pool_tokens=n_pages * config.page_size,
            load_s=time.monotonic() - began,
        )
        cache = PrefixCache(
            n_pages,
            config.page_size,
            policy=eviction.POLICIES[config.eviction_policy],
            reuse=not config.disable_radix_cache,
            pin_share=config.pin_share,
        )
        runner: Runner = ModelRunner(
            model, pool, model_config.eos_token_ids, deterministic=config.deterministic
        )
        if config.overlap:
            runner = Ahead(runner)
        scheduler = Scheduler(_limits(config, info), cache)
        return cls(scheduler, runner, info, MonotonicClock(), overlap=config.overlap)

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and self._in_flight is None

    def submit(self, message: Submit, now: float) -> Rejected | None:
        return self.scheduler.submit(message, now)

    def abort(self, request_id: str, now: float) -> list[ToFrontend]:
        return self.scheduler.abort(request_id, now)

    def flush(self) -> bool:
        return self.scheduler.flush()

    def inspect(self, *, check: bool) -> tuple[EngineStats, list[str]]:
        """Counters, and with `check` broken invariants in words: reported, never fatal."""
        violations = self.scheduler.violations() if check else []
        for violation in violations:
            logger.error("invariant broken: %s", violation)
        return self.scheduler.stats(), violations

    def pin(self, message: Pin, now: float) -> Pinned:
        """Keep what is computed of a prefix for a time, or say why not."""
        if len(message.token_ids) % 4:
            return Pinned(message.call_id, 0, BAD_IDS)
        key = as_tokens(message.token_ids)
        pinned = self.scheduler.cache.pin(message.namespace, key, now, message.ttl_s)
        return Pinned(message.call_id, *pinned)

    def unpin(self, message: Unpin, now: float) -> Pinned:
        """Give up a pin that was made with exactly these tokens."""
        if len(message.token_ids) % 4:
            return Pinned(message.call_id, 0, BAD_IDS)
        key = as_tokens(message.token_ids)
        return Pinned(message.call_id, self.scheduler.cache.unpin(message.namespace, key))

    def show_tree(self, message: ShowTree) -> TreeShown:
        """The nodes of the tree, most recently used first."""
        total, nodes = self.scheduler.cache.snapshot(message.limit)
        shown = [TreeNode(**dataclasses.asdict(node)) for node in nodes]
        return TreeShown(message.call_id, total, shown)

    def step(self) -> list[ToFrontend]:
        """End what is too late, then one step, if there is anything to compute.

        With overlap, a step is launched, and then the one launched before it is waited for. Returns
        what the frontends are to be told.
        """
        now = self._clock.now()
        replies = self.scheduler.expire(now)
        plan = self.scheduler.plan(now)
        launched = None if plan is None else (plan, self.runner.launch(plan))
        if self._overlap:
            launched, self._in_flight = self._in_flight, launched
        if launched is not None:
            done, pending = launched
            replies += self.scheduler.apply(done, pending.result(), self._clock.now())
        return replies


def _limits(config: EngineConfig, info: ModelInfo) -> SchedulerLimits:
    return SchedulerLimits(
        context_length=info.context_length,
        eos_token_ids=info.eos_token_ids,
        step_tokens=config.chunked_prefill_size,
        max_running_requests=config.max_running_requests,
        max_queued_requests=config.max_queued_requests,
        starvation_bound=config.starvation_bound,
        schedule_policy=config.schedule_policy,
        max_queued_tokens=config.max_queued_tokens,
        mixed_tokens=config.mixed_prefill_size,
        jump_forward=config.jump_forward,
    )


def _dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 where the CPU multiplies it natively, else float32."""
    if name == "auto":
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
