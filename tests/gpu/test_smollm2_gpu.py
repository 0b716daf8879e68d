"""The embedded model's equality tests on a GPU: transformers, and every way to schedule it.

The weights are those of RAMIFY_GPU_MODEL (a folder or GGUF file), or of the cache. Where there are
none it is a random model of that shape, which transformers makes and saves.
"""

import os
from pathlib import Path

import pytest
import torch
from place import DEVICE, INTERPRETED, engine_options, here_only, sized
from prompt_errors import prompt_errors
from test_families import write_tokenizer

from ramify.srt.engine import Engine
from ramify.srt.weights import source

transformers = pytest.importorskip("transformers")
pytestmark = here_only

LENGTHS = sized([5, 6, 9, 15, 16, 17, 31, 33, 48, 64, 65, 100, 255, 500, 1000], [5, 16, 33, 70])
NEW = sized(32, 6)
GREEDY = {"temperature": 0.0, "max_new_tokens": NEW, "ignore_eos": True}
TIE = 1e-3  # of a logit: the number types are the same, the order of sums is not
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": sized(30, 2),
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": sized(49152, 501),
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def cached():
    """The name of the embedded model if nothing has to be fetched for it, else None."""
    known = source.KNOWN["smollm2"]
    folder = source.cache_folder() / f"models-{source.CONVERSION}"
    there = (folder / f"smollm2-{known.sha256[:12]}" / "config.json").is_file()
    return "smollm2" if there and not INTERPRETED else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    name = os.environ.get("RAMIFY_GPU_MODEL") or cached()
    if name is not None:
        return str(source.prepare(name).path)
    where = Path(tmp_path_factory.mktemp("smollm2"))
    torch.manual_seed(7)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).float()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual start, so that errors show
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    model.save_pretrained(where)
    write_tokenizer(where)
    return str(where)


@pytest.fixture(scope="module")
def oracle(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(DEVICE).eval()


@pytest.fixture(scope="module")
def prompts(oracle):
    """Prompts that share no prefix longer than a few tokens, and some of one trunk."""
    vocab = oracle.config.vocab_size - 1
    apart = [
        [1 + (7 * k + i * i * 31 + i) % vocab for i in range(n)] for k, n in enumerate(LENGTHS)
    ]
    trunk = apart[-1][: sized(300, 64)]
    return [*apart, *([*trunk, k + 1, k + 2] for k in range(3))]


def assert_greedy(oracle, prompt, tokens):
    """Each token is the likeliest after all before it, or as likely as that."""
    assert len(tokens) == NEW
    with torch.inference_mode():
        logits = oracle(torch.tensor([[*prompt, *tokens]], device=DEVICE)).logits[0]
    rows = logits[len(prompt) - 1 : -1].float()
    chosen = rows.gather(-1, torch.tensor(tokens, device=DEVICE)[:, None])[:, 0]
    assert (rows.max(-1).values - chosen).max() <= TIE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": False},
        {"disable_cuda_graph": True},
        {"disable_radix_cache": True},
        {"chunked_prefill_size": 37, "max_running_requests": 8},
        {"max_running_requests": 1},
        {"page_size": 16},
        {"max_total_tokens": 1536, "page_size": 16},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_however_it_runs_the_tokens_are_those_of_transformers(folder, oracle, prompts, options):
    """Cached or not, chunked or whole, alone or in a batch, retracted or not: greedy search."""
    given = {"dtype": "float32", "max_total_tokens": 16384, "cuda_graph_max_bs": 32, **options}
    with Engine(folder, **engine_options(**given)) as engine:
        replies = engine.generate(input_ids=prompts, sampling_params=GREEDY)
        again = engine.generate(input_ids=prompts[-1], sampling_params=GREEDY)
        info = engine.server_info()
    assert info["violations"] == []
    for prompt, reply in zip([*prompts, prompts[-1]], [*replies, again], strict=True):
        assert_greedy(oracle, prompt, reply["output_ids"])
    if "max_total_tokens" in options and not INTERPRETED:
        assert info["stats"]["retractions"] + info["stats"]["evicted_tokens"] > 0
    if not options:
        assert again["meta_info"]["cached_tokens"] > 0


def test_bfloat16_is_as_close_to_fp32_as_transformers_bfloat16_is(folder, oracle, prompts):
    """The yardstick is what the number type itself costs: transformers' own bf16 against fp32."""
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    peer = peer.to(DEVICE).eval()
    options = engine_options(dtype="bfloat16", max_total_tokens=8192, cuda_graph_max_bs=4)
    some = [prompt for prompt in prompts if len(prompt) > 30][:5]
    with Engine(folder, **options) as engine:
        error, peer_error = prompt_errors(engine, some, oracle, peer)
    assert error.mean() < 1.3 * peer_error.mean()
    assert error.max() < 2 * peer_error.max()
