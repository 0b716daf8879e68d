"""Everything of an engine from its options: model, pool, tiers, prefix cache, scheduler, runner."""

import logging
import time
from pathlib import Path

import torch

from ramify.kernels.cpu.threads import set_threads
from ramify.kernels.shapes import FP8
from ramify.radix_cache import eviction
from ramify.radix_cache.file_worker import FileWorker
from ramify.radix_cache.host_pool import HostPool
from ramify.radix_cache.kv_pool import KvPool
from ramify.radix_cache.page_files import FolderUnusable, PageFiles
from ramify.radix_cache.page_mover import PageMover
from ramify.radix_cache.plans import PageRecord
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tiers import TierIndex
from ramify.srt.clock import Clock, MonotonicClock
from ramify.srt.config import EngineConfig
from ramify.srt.constrained.child_wire import BackendSource
from ramify.srt.constrained.choose import check_installed
from ramify.srt.constrained.manager import GrammarManager
from ramify.srt.errors import ConfigError
from ramify.srt.execution.device import Device, OnDevice, open_device
from ramify.srt.execution.gpu_runner import GpuRunner
from ramify.srt.execution.graphs import CudaGraphs, NoGraphs
from ramify.srt.execution.memory import (
    GIB,
    SPARE_PAGES,
    disk_pages,
    host_slots,
    page_bytes_of,
    pool_pages,
)
from ramify.srt.execution.model_runner import Ahead, ModelRunner, Runner
from ramify.srt.messages import ModelInfo
from ramify.srt.models.config import ModelConfig
from ramify.srt.models.llama import LlamaModel
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.weights.cache_folder import cache_folder
from ramify.srt.weights.fingerprint import fingerprint
from ramify.srt.weights.reader import open_source
from ramify.srt.weights.source import ModelFolder
from ramify.srt.workers.attention_backend import load_kernels, try_out
from ramify.srt.workers.engine_core import EngineCore

logger = logging.getLogger(__name__)

MAX_GRAPH_ROWS = 256  # more are not recorded unless asked for: every size takes time and memory
TOO_LARGE = (
    "the GPU's memory is not enough: it has {total:.2f} GiB, of which {free:.2f} were free before "
    "the model was loaded ({error}). Take a smaller model, lower mem_fraction_static, kv_cache_gb, "
    "chunked_prefill_size or max_running_requests, or free memory that other programs hold"
)


def build_core(config: EngineConfig, folder: ModelFolder, clock: Clock | None = None) -> EngineCore:
    """Load a prepared model. Raises ModelLoadError or ConfigError."""
    set_compute_threads(config)
    device = open_device(config.device)
    if not device.is_cuda:
        return _build(config, folder, clock, device)
    free, total = device.free_and_total
    try:
        return _build(config, folder, clock, device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            TOO_LARGE.format(
                total=total / GIB, free=free / GIB, error=str(error).split(".", maxsplit=1)[0]
            )
        ) from None


def _build(
    config: EngineConfig, folder: ModelFolder, clock: Clock | None, device: Device
) -> EngineCore:
    began = time.monotonic()
    shape = ModelConfig.from_hf(folder.config(), folder.generation_config(), config.context_length)
    grammars = _grammars(config, folder, shape)  # may load while the model does
    model = _model(config, folder, shape, device)
    stored = _stored(config, model, device)
    gpu = device.free_and_total if device.is_cuda else None
    n_pages = pool_pages(config, shape, stored, gpu)
    pool = KvPool(
        shape.n_layers,
        n_pages + (SPARE_PAGES if device.is_cuda else 0),
        shape.n_kv_heads,
        config.page_size,
        shape.head_dim,
        stored,
        device.torch_device,
    )
    try_out(model.ops, shape, pool)
    host, files, known = _tiers(config, folder, model, pool, device)
    cache = PrefixCache(
        n_pages,
        config.page_size,
        policy=eviction.POLICIES[config.eviction_policy],
        reuse=not config.disable_radix_cache,
        pin_share=config.pin_share,
        tiers=_index(config, shape, stored, host, files, known),
    )
    runner = _runner(config, device, model, pool, n_pages, PageMover(pool, host, files))
    info = _info(config, shape, model, n_pages, time.monotonic() - began)
    scheduler = Scheduler(_limits(config, info), cache)
    return EngineCore(
        scheduler,
        runner,
        info,
        clock or MonotonicClock(),
        overlap=config.overlap,
        files=files,
        grammars=grammars,
    )


def _runner(
    config: EngineConfig,
    device: Device,
    model: LlamaModel,
    pool: KvPool,
    n_pages: int,
    mover: PageMover,
) -> Runner:
    """What computes. On a GPU a launched step runs by itself; on a CPU overlap takes a thread."""
    ends = model.config.eos_token_ids
    if not device.is_cuda:
        runner = ModelRunner(model, pool, ends, mover=mover, deterministic=config.deterministic)
        return Ahead(runner) if config.overlap else runner
    longest = min(model.config.context_length, n_pages * config.page_size)
    largest = config.cuda_graph_max_bs or min(config.max_running_requests, MAX_GRAPH_ROWS)
    eager = model.ops.backend != "triton"  # reads numbers on the host: no recording can do that
    gpu_runner = GpuRunner(
        device,
        NoGraphs() if config.disable_cuda_graph or eager else CudaGraphs(),
        model,
        pool,
        ends,
        max_requests=config.max_running_requests,
        max_pages=-(-longest // config.page_size) + 1,
        max_graph_rows=0 if eager else largest,
        mover=mover,
        deterministic=config.deterministic,
    )
    gpu_runner.warm_up(config.chunked_prefill_size)
    return gpu_runner


def _grammars(
    config: EngineConfig, folder: ModelFolder, shape: ModelConfig
) -> GrammarManager | None:
    """What compiles grammars; None without a tokenizer. Raises ConfigError."""
    if not folder.has_tokenizer:
        return None
    check_installed(config.grammar_backend)
    manager = GrammarManager(
        BackendSource(
            config.grammar_backend, str(folder.path), shape.vocab_size, shape.eos_token_ids
        )
    )
    if config.grammar_warm_up:
        manager.warm_up()
    return manager


def set_compute_threads(config: EngineConfig) -> None:
    """Torch's threads and those of the C++ kernels: as many as the options say."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    set_threads(torch.get_num_threads())


def _model(
    config: EngineConfig, folder: ModelFolder, shape: ModelConfig, device: Device
) -> LlamaModel:
    with torch.inference_mode():
        dtype = _dtype(config.dtype, device)
        ops = load_kernels(config, shape, dtype, device)
        source = open_source(folder, config.seed or 0)
        if device.is_cuda:
            source = OnDevice(source, device)
        model = LlamaModel(shape, source, ops, dtype)
        model.cos_sin = model.cos_sin.to(device.torch_device)
    if config.deterministic and not model.rows_are_independent:
        raise ConfigError(
            "deterministic needs the C++ kernels, on a CPU without AMX, or on a GPU the Triton "
            f"kernels: with these ({model.ops.backend}) a row's result depends on those beside it"
        )
    return model


def _stored(config: EngineConfig, model: LlamaModel, device: Device) -> torch.dtype:
    """The number type of the pool. Raises ConfigError for a GPU whose kernels cannot have it."""
    if config.kv_cache_dtype != "fp8_e4m3":
        return model.dtype
    if model.ops.backend != "reference" and not device.has_fp8:
        raise ConfigError(
            f"kv_cache_dtype fp8_e4m3 needs a GPU of compute capability 8.9 or above: the "
            f"{device.name} is older"
        )
    return FP8


# --- tiers below the pool ------------------------------------------------------------------------


def _tiers(
    config: EngineConfig, folder: ModelFolder, model: LlamaModel, pool: KvPool, device: Device
) -> tuple[HostPool | None, FileWorker | None, list[PageRecord]]:
    """Host memory and page files, with what the files hold; None where there is none."""
    stored = pool.keys.dtype
    slots = 0 if config.disable_radix_cache else host_slots(config, model.config, stored)
    wanted = slots and config.disk_cache_gb
    files = _files(config, folder, model, stored, device) if wanted else None
    if not slots or (files is None and not config.host_cache_gb):
        return None, None, []
    host = HostPool(pool, slots)
    if files is None:
        return host, None, []
    known = files.scan()
    logger.info("the disk cache holds %d pages of %d tokens", len(known), config.page_size)
    return host, FileWorker(files, host), known


def _files(
    config: EngineConfig,
    folder: ModelFolder,
    model: LlamaModel,
    stored: torch.dtype,
    device: Device,
) -> PageFiles | None:
    """The page files of this model and these options; None, with a warning, without a folder."""
    name = fingerprint(
        folder,
        device=device.name,
        dtype=str(model.dtype),
        kv_dtype=str(stored),
        page_size=config.page_size,
        backend=model.ops.backend,
        deterministic=config.deterministic,
        seed=config.seed or 0,
    )
    page_bytes = page_bytes_of(config, model.config, stored)
    where = (
        Path(config.disk_cache_dir).expanduser()
        if config.disk_cache_dir
        else cache_folder() / "pages"
    )
    try:
        return PageFiles(where, name, page_bytes, config.page_size)
    except FolderUnusable as error:
        logger.warning("going on without a disk cache: %s", error)
        return None


def _index(
    config: EngineConfig,
    shape: ModelConfig,
    dtype: torch.dtype,
    host: HostPool | None,
    files: FileWorker | None,
    known: list[PageRecord],
) -> TierIndex | None:
    if host is None:
        return None
    return TierIndex(
        config.page_size,
        host.n_slots,
        disk_pages(config, shape, dtype) if files is not None else 0,
        known,
        prefetch_min_tokens=config.prefetch_min_tokens,
    )


# --- facts and numbers ---------------------------------------------------------------------------


def _info(
    config: EngineConfig, shape: ModelConfig, model: LlamaModel, n_pages: int, load_s: float
) -> ModelInfo:
    return ModelInfo(
        vocab_size=shape.vocab_size,
        context_length=min(shape.context_length, n_pages * config.page_size),
        eos_token_ids=shape.eos_token_ids,
        dtype=str(model.dtype).removeprefix("torch."),
        device=config.device,
        architecture=shape.architecture,
        weight_bytes=model.weight_bytes,
        kv_pool_tokens=n_pages * config.page_size,
        load_s=load_s,
        reasoning_parser=config.reasoning_parser,
    )


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


def _dtype(name: str, device: Device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU, and where the CPU multiplies it natively, else float32."""
    if name == "auto":
        native = device.is_cuda or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
