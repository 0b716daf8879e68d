"""What long prompts do to the people who are being answered.

    python benchmarks/inter_token_latency.py [--threads N] [--chunk TOKENS]

Eight chats generate; then the same while 4,000-token prompts arrive one after the other. The time
between two tokens of a chat is the time of the steps between them: median and 99th percentile of
all gaps, undisturbed and disturbed, and how long the long prompts took to their first token.
"""

import gc
import statistics
import time

from measure import add, add_machine, argument

from ramify.srt.config import EngineConfig
from ramify.srt.messages import Finished, Submit, Tokens, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.weights.source import prepare
from ramify.srt.workers.building import build_core
from ramify.srt.workers.engine_core import EngineCore

CHATS, CONTEXT, NEW, LONG, LONG_PROMPTS = 8, 300, 400, 4_000, 3


def submit(core: EngineCore, name: str, n_prompt: int, n_new: int, salt: int) -> None:
    """A request that shares nothing with any other."""
    ids = [1 + (salt * 7919 + k * 31 + salt * k) % 40_000 for k in range(n_prompt)]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=n_new, ignore_eos=True)
    assert core.submit(Submit(name, pack_ids(ids), sampling), time.monotonic()) is None


class Chats:
    """Eight chats that run, and the gaps between their tokens."""

    def __init__(self, core: EngineCore, salt: int) -> None:
        self.core = core
        self.gaps: list[float] = []
        self.ttft: list[float] = []
        self._last: dict[str, float] = {}
        for i in range(CHATS):
            submit(core, f"chat {salt} {i}", CONTEXT, NEW, salt + i)

    def steps(self, n: int, *, record: bool) -> None:
        """Run n steps. Records the gaps between tokens of chats, and first tokens of the rest."""
        for _ in range(n):
            messages = self.core.step()
            now = time.monotonic()
            for message in messages:
                if isinstance(message, Tokens) and message.request_id.startswith("chat"):
                    if record and message.request_id in self._last:
                        self.gaps.append(now - self._last[message.request_id])
                    self._last[message.request_id] = now
                elif isinstance(message, Finished) and message.request_id.startswith("long"):
                    self.ttft.append(message.ttft_s)

    def end(self) -> None:
        """Stop all of them."""
        for request_id in self._last:
            self.core.abort(request_id, time.monotonic())


def quantile(values: list[float], q: float) -> float:
    """In milliseconds."""
    return statistics.quantiles(values, n=100)[round(q * 100) - 1] * 1e3


def main() -> None:
    add_machine()
    chunk = argument("chunk", EngineConfig().chunked_prefill_size)
    config = EngineConfig(threads=argument("threads", 2), chunked_prefill_size=chunk)
    core = build_core(config, prepare("smollm2"))
    gc.freeze()  # as the engine process does
    calm, busy = Chats(core, 1_000), None
    calm.steps(30, record=False)
    calm.steps(250, record=True)
    calm.end()
    busy = Chats(core, 2_000)
    busy.steps(30, record=False)
    for i in range(LONG_PROMPTS):
        submit(core, f"long {i}", LONG, 1, 9_000 + i)
        while len(busy.ttft) <= i:
            busy.steps(1, record=True)
    busy.end()
    for name, gaps in (("undisturbed", calm.gaps), ("beside 4,000-token prompts", busy.gaps)):
        add(f"{name}: gap between tokens, median, ms", quantile(gaps, 0.5))
        add(f"{name}: gap between tokens, p99, ms", quantile(gaps, 0.99))
    add(
        "p99 beside long prompts over undisturbed",
        quantile(busy.gaps, 0.99) / quantile(calm.gaps, 0.99),
    )
    add("long prompts: time to first token, median, s", statistics.median(busy.ttft))


if __name__ == "__main__":
    main()
