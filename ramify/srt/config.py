"""Every option of the engine and of the server: frozen dataclasses from which the CLI is generated.

Names are SGLang's where it has the same option. `resolve` checks what one field cannot know alone.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from ramify.srt.errors import ConfigError
from ramify.srt.reasoning import NAMES as REASONING_PARSERS

EVICTION_POLICIES = ("lru", "lfu", "slru", "fifo", "priority", "cost")
SCHEDULE_POLICIES = ("lpm", "fcfs", "dfs-weight", "priority", "lof", "random", "program")
GRAMMAR_BACKENDS = ("auto", "llguidance", "xgrammar", "outlines")
DTYPES = ("auto", "bfloat16", "float32")
KV_CACHE_DTYPES = ("auto", "fp8_e4m3")
LOG_LEVELS = ("debug", "info", "warning", "error")
DEVICES = ("cpu", "cuda")
ATTENTION_BACKENDS = ("auto", "cpu", "triton", "flashinfer", "reference")

# What is right for one device and wrong for the other: the defaults of options left out.
BY_DEVICE: dict[str, dict[str, float]] = {
    "cpu": {
        "page_size": 16,
        "kv_cache_gb": 1.0,
        "chunked_prefill_size": 256,
        "mixed_prefill_size": 40,
        "max_running_requests": 64,
        "overlap": False,
    },
    "cuda": {
        "page_size": 64,
        "chunked_prefill_size": 4096,
        "mixed_prefill_size": 512,
        "max_running_requests": 256,
        "overlap": True,
    },
}


def option(
    default: Any,
    help: str,
    group: str,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that the CLI turns into `--name` under the heading `group`."""
    return field(default=default, metadata={"help": help, "group": group, "choices": choices})


@dataclass(frozen=True)
class EngineConfig:
    """Options of one engine. `model`: alias, folder, hub id, GGUF file or dummy:CONFIG.

    Where an option is left out, or None, that depends on the device, it becomes what `BY_DEVICE`
    says. A `kv_cache_gb` that stays None is what `mem_fraction_static` leaves.
    """

    model: str = "smollm2"
    dtype: str = option(
        "auto", "number type of weights, and of a cache without its own", "model", DTYPES
    )
    context_length: int | None = option(None, "longest sequence; the model's own if unset", "model")
    seed: int | None = option(None, "seed for requests that bring none; random if unset", "model")
    device: str = option("cpu", "where the model runs", "execution", DEVICES)
    threads: int | None = option(None, "compute threads; all cores if unset", "execution")
    watchdog_timeout_s: float = option(
        300.0, "an engine silent for this long is killed and restarted; 0: never", "execution"
    )
    attention_backend: str = option(
        "auto",
        "kernels: C++ on a CPU, Triton on a GPU (auto), FlashInfer's attention among Triton's (no "
        "CUDA graphs), or plain torch",
        "execution",
        ATTENTION_BACKENDS,
    )
    disable_cuda_graph: bool = option(
        False, "launch every kernel of a step by itself on a GPU (to compare)", "execution"
    )
    cuda_graph_max_bs: int | None = option(
        None,
        "largest decode step recorded as a CUDA graph; max-running-requests if unset, at most 256",
        "execution",
    )
    deterministic: bool = option(
        False, "same tokens to the bit, whatever is cached or shares a step; slower", "execution"
    )
    kv_cache_dtype: str = option(
        "auto",
        "number type of the KV cache; auto: the weights'. fp8_e4m3 (unscaled) is for GPUs",
        "cache",
        KV_CACHE_DTYPES,
    )
    page_size: int = option(None, "tokens in one page of the KV cache (16; cuda 64)", "cache")
    kv_cache_gb: float | None = option(
        None, "memory for the KV cache, GiB (1.0; cuda: by mem-fraction-static)", "cache"
    )
    mem_fraction_static: float = option(
        0.88, "share of a GPU's memory for weights and KV cache, where its size is not set", "cache"
    )
    max_total_tokens: int | None = option(
        None, "KV cache size in tokens, over kv-cache-gb", "cache"
    )
    disable_radix_cache: bool = option(False, "never reuse a prefix (to compare)", "cache")
    eviction_policy: str = option(
        "lru", "which prefixes are forgotten first", "cache", EVICTION_POLICIES
    )
    pin_share: float = option(0.25, "most of the cache that pins may hold", "cache")
    host_cache_gb: float = option(
        0.0, "host memory for pages evicted from the KV cache, GiB", "cache"
    )
    disk_cache_gb: float = option(
        0.0, "disk space for pages that outlive memory and restarts, GiB", "cache"
    )
    disk_cache_dir: str | None = option(
        None, "folder of the disk cache; one in the cache folder if unset", "cache"
    )
    prefetch_min_tokens: int = option(
        32, "fewer tokens on disk are computed again rather than waited for", "cache"
    )
    schedule_policy: str = option(
        "lpm", "who is computed next (lpm: longest cached prefix)", "scheduling", SCHEDULE_POLICIES
    )
    max_queued_tokens: int | None = option(
        None, "most prompt tokens waiting; more get 503", "scheduling"
    )
    chunked_prefill_size: int = option(
        None, "most tokens computed in one step (256; cuda 4096)", "scheduling"
    )
    mixed_prefill_size: int = option(
        None,
        "prompt tokens in a step that also decodes, for each prompt that waits (40; cuda 512)",
        "scheduling",
    )
    max_running_requests: int = option(
        None, "most requests computed at once (64; cuda 256)", "scheduling"
    )
    max_queued_requests: int = option(1024, "most requests waiting; more get 503", "scheduling")
    starvation_bound: int = option(
        64, "a request is overtaken at most this often before it goes first", "scheduling"
    )
    overlap: bool = option(
        None, "plan the next step while one is computed (off; cuda on)", "scheduling"
    )
    grammar_backend: str = option(
        "auto", "engine for regexes, schemas and grammars", "grammar", GRAMMAR_BACKENDS
    )
    grammar_warm_up: bool = option(
        False,
        "load the grammar engine at the start (serve does), not when it is needed",
        "grammar",
    )
    jump_forward: bool = option(True, "take forced tokens without sampling them", "grammar")
    reasoning_parser: str | None = option(
        None,
        "how the model marks its thinking: told apart in chats, and free of their constraints",
        "grammar",
        REASONING_PARSERS,
    )
    record_trace: str | None = option(
        None, "file for what arrives and what is answered, to be replayed", "scheduling"
    )

    def __post_init__(self) -> None:
        for name, value in BY_DEVICE.get(self.device, BY_DEVICE["cpu"]).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


@dataclass(frozen=True)
class ServeConfig:
    """Options of the HTTP server."""

    host: str = option("127.0.0.1", "address to listen on", "server")
    port: int = option(30000, "port to listen on; 0 takes a free one", "server")
    served_model_name: str | None = option(None, "name clients use; the model's if unset", "server")
    log_level: str = option("info", "what to log", "server", LOG_LEVELS)
    api_key: str | None = option(
        None, "key that clients must send; better in RAMIFY_API_KEY", "server"
    )
    api_keys_file: str | None = option(
        None, "file of keys that clients may send, one NAME:KEY a line", "server"
    )
    cache_preview: bool = option(
        False, "show text in /cache/tree, and misses that another namespace explains", "server"
    )
    max_body_mb: float = option(32.0, "largest request body, MiB", "server")
    max_batch: int = option(1024, "most prompts in one request", "server")
    drain_timeout_s: float = option(30.0, "how long to finish requests after SIGTERM", "server")


def check_engine(config: EngineConfig) -> None:
    """Refuse values that cannot work. Raises ConfigError naming the option."""
    least = {
        "page_size": 1,
        "chunked_prefill_size": 1,
        "max_running_requests": 1,
        "mixed_prefill_size": 1,
        "max_queued_requests": 1,
        "max_queued_tokens": 1,
        "starvation_bound": 1,
        "context_length": 2,
        "max_total_tokens": 2 * config.page_size,
        "threads": 1,
        "prefetch_min_tokens": 1,
        "cuda_graph_max_bs": 1,
        "host_cache_gb": 0,
        "disk_cache_gb": 0,
        "watchdog_timeout_s": 0,
    }
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ConfigError(f"{name} must be at least {low}, got {value}")
    if not 0 <= config.pin_share < 1:
        raise ConfigError(f"pin_share must be at least 0 and under 1, got {config.pin_share}")
    if not 0 < config.mem_fraction_static < 1:
        raise ConfigError(
            f"mem_fraction_static must be more than 0 and under 1, got {config.mem_fraction_static}"
        )
    if config.kv_cache_gb is not None and not config.kv_cache_gb > 0:
        raise ConfigError(f"kv_cache_gb must be more than 0, got {config.kv_cache_gb}")
    if config.max_running_requests > config.chunked_prefill_size:
        raise ConfigError(
            f"chunked_prefill_size ({config.chunked_prefill_size}) must be at least "
            f"max_running_requests ({config.max_running_requests}): each takes a token of the step"
        )
    _check_device(config)
    for item in fields(config):
        choices = item.metadata.get("choices")
        if choices and getattr(config, item.name) not in (*choices, item.default):
            raise ConfigError(f"{item.name} must be one of {', '.join(choices)}")


def _check_device(config: EngineConfig) -> None:
    """Refuse kernels of the other device, and options that would do nothing on this one."""
    backends = {
        "cpu": ("auto", "cpu", "reference"),
        "cuda": ("auto", "triton", "flashinfer", "reference"),
    }
    fitting = backends.get(config.device, ATTENTION_BACKENDS)
    if config.attention_backend in ATTENTION_BACKENDS and config.attention_backend not in fitting:
        raise ConfigError(
            f"attention_backend must be one of {', '.join(fitting)} on device {config.device}"
        )
    if config.device == "cpu" and (config.disable_cuda_graph or config.cuda_graph_max_bs):
        raise ConfigError("disable_cuda_graph and cuda_graph_max_bs need device cuda")
    if config.cuda_graph_max_bs and config.attention_backend in ("flashinfer", "reference"):
        raise ConfigError(
            "cuda_graph_max_bs needs attention_backend triton: with "
            f"{config.attention_backend} no step is recorded"
        )
    plain = config.attention_backend == "reference"
    if config.device == "cpu" and config.kv_cache_dtype == "fp8_e4m3" and not plain:
        raise ConfigError(
            "kv_cache_dtype fp8_e4m3 needs device cuda, or attention_backend reference: the C++ "
            "kernels read no fp8"
        )
