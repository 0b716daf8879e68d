"""The whole engine on a GPU: the logits of transformers, and the same tokens however it runs."""

import json

import pytest
from place import ONLY_CUDA, engine_options, here_only, on_a_gpu, sized
from test_families import FAMILIES, SIZES, check_prompts, checkpoint, write_tokenizer

from ramify.srt.engine import Engine

pytestmark = here_only

GPU = {"dtype": "float32", "max_total_tokens": 8192, "seed": 1, "cuda_graph_max_bs": 32}
TRUNK = [1 + k * k % 200 for k in range(150)]
ASKED = [
    {"temperature": 0.0},
    {"temperature": 1.0, "sampling_seed": 1},
    {"temperature": 0.8, "sampling_seed": 2, "top_p": 0.8, "top_k": 40},
    {"temperature": 0.0, "frequency_penalty": 1.0, "presence_penalty": 0.2},
    {"temperature": 0.9, "sampling_seed": 4, "repetition_penalty": 1.3},
    {"temperature": 0.0, "logit_bias": {"30": 4.0, "31": -4.0}},
    {"temperature": 0.0, "stop_token_ids": list(range(20, 60))},
    {"temperature": 0.0, "max_new_tokens": 1},
    {"temperature": 0.7, "sampling_seed": 3, "min_p": 0.05, "n": 2},
    {"temperature": 0.0, "min_new_tokens": 20, "ignore_eos": True, "max_new_tokens": 40},
]


@pytest.mark.parametrize("name", sized([*FAMILIES], ["llama-2", "qwen3"]))
def test_logits_and_greedy_tokens_agree_with_transformers(tmp_path, name):
    model = checkpoint(tmp_path, name)
    write_tokenizer(tmp_path)
    with Engine(str(tmp_path), **engine_options(**GPU)) as engine:
        check_prompts(model, engine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    checkpoint(where, "qwen3")
    write_tokenizer(where)
    return str(where)


def answers(folder, **options):
    """The tokens of a batch of everything that can be asked for, some of it of one trunk."""
    return told(folder, **engine_options(**{**GPU, **options}))


def told(folder, **options):
    prompts = [[*TRUNK[: 75 * (i % 3)], 7 + i, 31 + i] for i in range(3 * len(ASKED))]
    sampling = [{"max_new_tokens": 24, **ASKED[i % len(ASKED)]} for i in range(len(prompts))]
    with Engine(folder, **options) as engine:
        replies = engine.generate(input_ids=prompts, sampling_params=sampling)
        info = engine.server_info()
    assert info["violations"] == []
    flat = [r for reply in replies for r in (reply if isinstance(reply, list) else [reply])]
    return [reply["output_ids"] for reply in flat], info["stats"]


@pytest.fixture(scope="module")
def expected(folder):
    """What the plain torch kernels give on the CPU, one step after the other."""
    cpu = {"device": "cpu", "attention_backend": "reference", "overlap": False}
    options = {name: value for name, value in GPU.items() if name not in ONLY_CUDA}
    return told(folder, **options, **cpu)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": False},
        {"disable_cuda_graph": True},
        {"cuda_graph_max_bs": 4},
        {"attention_backend": "reference"},
        {"page_size": 16},
        {"chunked_prefill_size": 16, "mixed_prefill_size": 4, "max_running_requests": 8},
        {"disable_radix_cache": True},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_however_it_runs_the_tokens_are_those_of_the_cpu(folder, expected, options):
    assert answers(folder, **options)[0] == expected


@pytest.mark.parametrize("policy", ["fcfs", "priority", "program"])
def test_whoever_comes_first_the_tokens_are_the_same(folder, expected, policy):
    assert answers(folder, schedule_policy=policy, max_running_requests=3)[0] == expected


def test_retractions_change_no_token(folder, expected):
    given, stats = answers(folder, max_total_tokens=512, page_size=16)
    assert given == expected
    assert stats["retractions"] + stats["evicted_tokens"] > 0


def test_pages_come_back_from_host_memory(folder):
    prompts = [[*range(k, k + 120), 5] for k in range(1, 60, 10)]
    greedy = {"temperature": 0.0, "max_new_tokens": 8}
    small = {**GPU, "max_total_tokens": 512, "host_cache_gb": 0.05}
    with Engine(folder, **engine_options(**small)) as engine:
        first = [engine.generate(input_ids=p, sampling_params=greedy) for p in prompts]
        again = [engine.generate(input_ids=p, sampling_params=greedy) for p in prompts]
        assert engine.server_info()["stats"]["host_tokens"] > 0
    assert [r["output_ids"] for r in again] == [r["output_ids"] for r in first]


@on_a_gpu
def test_bfloat16_answers_and_takes_the_memory_that_it_may(tmp_path):
    config = {**SIZES, "architectures": ["LlamaForCausalLM"], "eos_token_id": 0}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    with Engine(
        f"dummy:{tmp_path / 'tiny.json'}", device="cuda", mem_fraction_static=0.3
    ) as engine:
        reply = engine.generate(
            input_ids=[TRUNK] * 3,
            sampling_params={"temperature": 0.0, "max_new_tokens": 9, "ignore_eos": True},
        )
        info, model = engine.server_info(), engine.model_info()
    assert [len(r["output_ids"]) for r in reply] == [9, 9, 9]
    assert model["dtype"] == "bfloat16"
    assert info["stats"]["pages_total"] * 64 > 100_000
