"""Every supported architecture against transformers, on tiny random checkpoints in fp32.

The checkpoint is written by transformers and read by our loader, so names, fused layouts, biases,
norms and rope scalings are all covered by one comparison of logits.
"""

import pytest
import tokenizers
import torch
import transformers

from ramify.srt.engine import Engine

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
HEADS_9_3 = {"num_attention_heads": 9, "num_key_value_heads": 3}
FAMILIES = {
    "llama-2": ("Llama", {}),
    "llama-2 without grouped heads": ("Llama", {"num_key_value_heads": 4}),
    "llama-3 scaled": ("Llama", {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3_SCALING}}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "llama with bias, tied": ("Llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "smollm2 shape": ("Llama", {"hidden_size": 72, **HEADS_9_3}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral wide head": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied, yarn": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def checkpoint(folder, name):
    """A seeded random model of one family, saved by transformers."""
    kind, options = FAMILIES[name]
    torch.manual_seed(7)
    rope = options.get("rope_parameters")
    if rope is not None and "rope_theta" not in rope:
        options = {**options, "rope_parameters": {"rope_theta": 10000.0, **rope}}
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual start, so that errors show
            parameter.mul_(3.0) if parameter.dim() > 1 else parameter.add_(
                torch.randn_like(parameter) * 0.1
            )
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_greedy_tokens_agree_with_transformers(tmp_path, name, backend):
    model = checkpoint(tmp_path, name)
    options = {"dtype": "float32", "attention_backend": backend, "kv_cache_gb": 0.01}
    write_tokenizer(tmp_path)
    with Engine(str(tmp_path), chunked_prefill_size=64, **options) as engine:
        check_prompts(model, engine)


def check_prompts(model, engine):
    """Answer prompts of four lengths greedily, and check each reply."""
    prompts = [[(3 * i + k) % 211 for i in range(n)] for k, n in enumerate((1, 5, 17, 150))]
    for prompt in prompts:
        reply = engine.generate(
            input_ids=prompt,
            sampling_params={"temperature": 0.0, "max_new_tokens": 8},
            return_logprob=True,
            logprob_start_len=0,
        )
        check(model, prompt, reply)


def check(model, prompt, reply):
    """Compare the log-probabilities of every token, prompt and output, with one dense pass."""
    ids = [*prompt, *reply["output_ids"]]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
        expected = logits.log_softmax(-1)
    meta = reply["meta_info"]
    got = [*meta["input_token_logprobs"], *meta["output_token_logprobs"]]
    assert [entry[1] for entry in got] == ids
    for position, (logprob, token, _) in enumerate(got):
        if position == 0:
            assert logprob is None
        else:
            assert logprob == pytest.approx(expected[position - 1, token].item(), abs=2e-4)
    greedy = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert reply["output_ids"] == greedy


def write_tokenizer(folder):
    """The smallest tokenizer there is: a checkpoint's folder must have one."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
