"""The runner for GPUs, on CPU tensors: the same tokens as the runner for CPUs, whatever happens.

Recordings are replayed by running the work again on the memory that it was recorded with, and that
memory must stay where it is. What cannot be shown here is that a GPU does the same.
"""

import random
from array import array
from collections import deque

import pytest
import torch

from ramify.kernels.dispatch import load_ops
from ramify.radix_cache import eviction
from ramify.radix_cache.kv_pool import KvPool
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.execution import gpu_runner as gpu_runner_module
from ramify.srt.execution.device import Device
from ramify.srt.execution.gpu_runner import GpuRunner
from ramify.srt.execution.gpu_sampling import uniform
from ramify.srt.execution.graphs import NoGraphs
from ramify.srt.execution.model_runner import ModelRunner
from ramify.srt.execution.random import uniform as uniform_on_the_host
from ramify.srt.messages import Finished, Rejected, Submit, pack_ids
from ramify.srt.models.config import ModelConfig
from ramify.srt.models.llama import LlamaModel
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.weights.dummy import DummySource

VOCAB, CONTEXT = 131, 256
EOS = (0,)
SHAPES = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16},
}
SAMPLING = [
    {"temperature": 0.0},
    {"temperature": 0.0, "ignore_eos": True},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.8, "top_k": 20},
    {"temperature": 1.2, "min_p": 0.1},
    {"temperature": 0.0, "frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"temperature": 0.9, "repetition_penalty": 1.4},
    {"temperature": 0.0, "logit_bias": {5: 30.0, 6: 29.9}, "frequency_penalty": 1.0},
    {"temperature": 1.0, "min_new_tokens": 6, "stop_token_ids": tuple(range(1, 60))},
]


class Louder(DummySource):
    """Weights so large that logits differ, and so do the tokens of different requests."""

    def _values(self, name, shape):
        return super()._values(name, shape) * (1.0 if "norm" in name else 12.0)


def tiny_model(shape, backend="reference", dtype=torch.float32, **which):
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        **SHAPES[shape],
    }
    source = Louder(3, torch.float32)
    ops = load_ops(backend, **which)
    return LlamaModel(ModelConfig.from_hf(sizes), source, ops, dtype)


class Recordings(NoGraphs):
    """Replays on the memory of the recording: it fails where a tensor has moved meanwhile."""

    def __init__(self):
        self.replays = 0

    def capture(self, work, static):
        replay = super().capture(work, static)
        places = [tensor.data_ptr() for tensor in static]

        def checked():
            assert [tensor.data_ptr() for tensor in static] == places
            self.replays += 1
            replay()

        return checked


class Grammar:
    """Allows a fifth of the tokens, now and then just one; forces those; ends after twelve."""

    unenforced = ()
    nbytes = 1

    def new_matcher(self):
        return Matcher()


class Matcher:
    def __init__(self, n=0):
        self.n = n

    def allowed(self, n):
        if n % 6 in (3, 4):
            return [7 + n]
        if n % 6 == 5:  # those just forced, or others: a penalty on them shows
            return [5 + n, 6 + n, 90, 91]
        return [t for t in range(2, VOCAB) if t % 5 == n % 5]

    def fill(self, row):
        row[:] = 0
        for token in self.allowed(self.n):
            row[token // 32] |= (1 << (token % 32)) - (1 << 32 if token % 32 == 31 else 0)
        return True

    def accept(self, token):
        good = token in self.allowed(self.n)
        self.n += good
        return good

    def rollback(self, n):
        self.n -= n

    def forced(self):
        run, n = [], self.n
        while len(self.allowed(n)) == 1 and n < 12:
            run += self.allowed(n)
            n += 1
        return run

    def is_accepting(self):
        return self.n >= 12

    def is_finished(self):
        return self.n >= 12

    def fork(self):
        return Matcher(self.n)


def requests(seed, long):
    """Requests that come in a few at a time: of trunks in common, and with every option."""
    rng = random.Random(seed)
    trunks = [[rng.randrange(1, VOCAB) for _ in range(n)] for n in (20, 70, 130)]
    made = []
    for i in range(rng.randint(14, 30)):
        prompt = [
            *rng.choice(trunks)[: rng.choice([1, 66, 200]) // (1 + 3 * long)],
            *rng.sample(range(VOCAB), 3),
        ]
        options = {**rng.choice(SAMPLING), "sampling_seed": rng.randrange(2**63)}
        start = rng.randrange(len(prompt)) if rng.random() < 0.2 else -1
        if long:
            options["ignore_eos"] = True
        grammar = Grammar() if rng.random() < 0.3 else None
        if grammar and rng.random() < 0.5:  # what is forced is counted, too
            options |= {"temperature": 0.0, "repetition_penalty": 2.0, "frequency_penalty": 2.0}
        most = 64 if long else rng.choice([0, 1, 9, 30])
        sampling = SamplingParams(max_new_tokens=most, **options)
        message = Submit(
            f"r{i}",
            pack_ids(prompt),
            sampling,
            return_logprob=start >= 0 or rng.random() < 0.1,
            logprob_start=start,
            top_logprobs=rng.choice([0, 3]),
        )
        made.append((rng.randrange(12), message, grammar))
    return deque(sorted(made, key=lambda item: item[0]))


class Run:
    """One engine without its sockets: the answers, and what it did for them."""

    def __init__(self, runner, seed, *, overlap, n_pages, page_size, most, step_tokens=48):
        self.runner = runner
        self.overlap = overlap
        limits = SchedulerLimits(
            context_length=min(CONTEXT, n_pages * page_size),
            eos_token_ids=EOS,
            step_tokens=step_tokens,
            max_running_requests=most,
            max_queued_requests=100,
            starvation_bound=8,
            mixed_tokens=12,
        )
        cache = PrefixCache(n_pages, page_size, policy=eviction.POLICIES["lru"])
        self.scheduler = Scheduler(limits, cache)
        self.waiting = requests(seed, n_pages < 20)
        self.tokens, self.scores, self.ends = {}, {}, {}
        self.followed = 0

    def answers(self):
        in_flight, steps = None, 0
        while self.waiting or in_flight or not self.scheduler.idle:
            while self.waiting and self.waiting[0][0] <= steps:
                _, message, grammar = self.waiting.popleft()
                self.take([r] if (r := self.scheduler.submit(message, 0.0, grammar)) else [])
            plan = self.scheduler.plan(float(steps))
            self.followed += sum(chunk.follows for chunk in plan.chunks) if plan else 0
            launched = None if plan is None else (plan, self.runner.launch(plan))
            if self.overlap:
                launched, in_flight = in_flight, launched
            if launched:
                self.take(self.scheduler.apply(launched[0], launched[1].result(), float(steps)))
            steps += 1
            assert steps < 5000
        assert self.scheduler.violations() == []
        return self.tokens, self.ends

    def take(self, messages):
        for message in messages:
            name = message.request_id
            if isinstance(message, Finished | Rejected):
                self.ends[name] = getattr(message, "reason", "rejected")
            else:
                self.tokens.setdefault(name, []).extend(message.token_ids)
                news = [*(message.prompt_logprobs or ()), *(message.logprobs or ())]
                self.scores.setdefault(name, []).extend(news)


def pool_for(model, n_pages, page_size, stored=torch.float32):
    config = model.config
    pool = KvPool(config.n_layers, n_pages, config.n_kv_heads, page_size, config.head_dim, stored)
    for part in (pool.keys, pool.values):  # what was never written must not matter
        part.copy_(torch.randn(part.shape))
    return pool


def gpu_runner(model, n_pages, page_size, most, graph_rows, stored=torch.float32, **options):
    pool = pool_for(model, n_pages + 1, page_size, stored)
    recordings = Recordings()
    runner = GpuRunner(
        Device(torch.device("cpu")),
        recordings,
        model,
        pool,
        EOS,
        max_requests=most,
        max_pages=-(-CONTEXT // page_size) + 1,
        max_graph_rows=graph_rows,
        **options,
    )
    return runner, recordings


def cpu_runner(model, n_pages, page_size, stored=torch.float32):
    return ModelRunner(model, pool_for(model, n_pages, page_size, stored), EOS)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_tokens_as_on_a_cpu(seed, monkeypatch):
    monkeypatch.setattr(gpu_runner_module, "SCORED_AT_ONCE", 7)  # so that it takes several pieces
    rng = random.Random(seed)
    model = tiny_model(rng.choice(list(SHAPES)))
    little = seed % 2 == 1  # memory for so few pages that requests are retracted
    page_size = 16 if little else 64
    most = rng.choice([9, 17])
    n_pages = (CONTEXT if little else 2000) // page_size
    sizes = {"n_pages": n_pages, "page_size": page_size, "most": most}
    first = Run(cpu_runner(model, n_pages, page_size), seed, overlap=False, **sizes)
    expected = first.answers()
    assert sum(map(len, expected[0].values())) > 40
    for overlap in (False, True):
        runner, recordings = gpu_runner(model, graph_rows=rng.choice([most, 2]), **sizes)
        made = recordings.replays
        second = Run(runner, seed, overlap=overlap, **sizes)
        assert second.answers() == expected
        assert recordings.replays > made
        assert bool(second.scheduler.stats().retractions) == little
        assert bool(second.followed) == overlap  # chunks whose token the host did not know
        for name, scores in first.scores.items():
            same_scores(second.scores[name], scores)


def same_scores(ours, theirs):
    assert [s.token_id for s in ours] == [s.token_id for s in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.logprob == (None if b.logprob is None else pytest.approx(b.logprob, abs=1e-4))
        assert [x for x, _ in a.top] == pytest.approx([x for x, _ in b.top], abs=1e-4)


def test_random_numbers_are_those_of_the_host_to_the_bit():
    rng = random.Random(1)
    seeds = [0, 1, 2**63 - 1, *(rng.randrange(2**63) for _ in range(500))]
    positions = [0, 2**31 - 1, 5, *(rng.randrange(2**20) for _ in range(500))]
    ours = uniform(torch.tensor(seeds), torch.tensor(positions)).tolist()
    assert ours == [uniform_on_the_host(s, p) for s, p in zip(seeds, positions, strict=True)]


def test_every_prompt_token_of_the_rig_is_a_token():
    """The comparison above is only as good as its requests: they must use what they claim to."""
    made = [item for seed in range(8) for item in requests(seed, False)]
    assert {bool(grammar) for _, _, grammar in made} == {True, False}
    assert {m.sampling.penalised for _, m, _ in made} == {True, False}
    assert any(m.return_logprob and m.logprob_start < 0 for _, m, _ in made)
    assert all(max(array("I", m.token_ids)) < VOCAB for _, m, _ in made)
