"""Reading config.json: both spellings, every refusal by name, and the rotary formulas."""

import pytest

from ramify.srt.errors import ModelLoadError
from ramify.srt.models.config import ModelConfig
from ramify.srt.models.rope import RopeConfig, inverse_frequencies

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def read(generation_config=None, context_length=None, **changes):
    return ModelConfig.from_hf({**BASE, **changes}, generation_config, context_length)


def test_a_llama_config_is_read():
    config = read()
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.context_length, config.dtype, config.rms_eps) == (4096, "bfloat16", 1e-5)
    assert (config.qkv_bias, config.o_bias, config.qk_norm) == (False, False, False)
    assert not config.tie_embeddings
    assert config.rope == RopeConfig(theta=10000.0)


@pytest.mark.parametrize(
    ("architecture", "changes", "biases_and_norm"),
    [
        ("LlamaForCausalLM", {"attention_bias": True}, (True, True, False)),
        ("MistralForCausalLM", {"sliding_window": None}, (False, False, False)),
        ("Qwen2ForCausalLM", {}, (True, False, False)),
        ("Qwen3ForCausalLM", {"head_dim": 32}, (False, False, True)),
    ],
)
def test_architectures_differ_in_biases_and_norms(architecture, changes, biases_and_norm):
    config = read(architectures=[architecture], **changes)
    assert (config.qkv_bias, config.o_bias, config.qk_norm) == biases_and_norm


def test_head_dim_need_not_divide_the_hidden_size():
    """Qwen3 projects to more than hidden_size; a config that does not say so means 128."""
    assert read(architectures=["Qwen3ForCausalLM"], head_dim=None).head_dim == 128
    assert read(head_dim=32).head_dim == 32


def test_end_tokens_of_both_files_are_joined():
    config = read(generation_config={"eos_token_id": [7, 2]}, eos_token_id=2)
    assert config.eos_token_ids == (2, 7)
    assert read(eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": None, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    ],
)
def test_old_and_new_spellings_of_rope_mean_the_same(spelling):
    assert read(**spelling).rope == RopeConfig(5e5, "llama3", 8.0, 1024, 1.0, 4.0)


def test_an_explicit_default_scaling_is_none():
    assert read(rope_scaling={"rope_type": "default"}, rope_theta=7.0).rope == RopeConfig(7.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ by layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"head_dim": 15}, "head_dim"),
        ({"torch_dtype": "float8"}, "float8"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes, said):
    with pytest.raises(ModelLoadError, match=said):
        read(**changes)


def test_a_sliding_window_is_refused_unless_the_context_fits_in_it():
    mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": 1024}
    with pytest.raises(ModelLoadError, match="at most 1024"):
        read(**mistral)
    assert read(**mistral, context_length=1024).context_length == 1024
    assert read(**{**mistral, "sliding_window": 4096}).context_length == 4096


def test_qwen_uses_its_window_only_when_told_to():
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16}
    assert read(**qwen, use_sliding_window=False).context_length == 4096
    with pytest.raises(ModelLoadError, match="sliding_window"):
        read(**qwen, use_sliding_window=True)


def test_the_context_is_never_longer_than_the_models_own():
    assert read(context_length=10**6).context_length == 4096
    assert read(context_length=100).context_length == 100


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "attention_factor": 0.7},
        {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5},
        {**YARN, "factor": 0.5},
    ],
)
@pytest.mark.parametrize("head_dim", [16, 64])
def test_frequencies_agree_with_transformers(scaling, head_dim):
    """Its formulas are the reference; ours are written anew, in double precision."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**scaling, "rope_theta": 50000.0}
    theirs = transformers.LlamaConfig(
        **{**BASE, "head_dim": head_dim}, rope_parameters=dict(parameters)
    )
    want, want_scale = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, "cpu")
    ours = read(head_dim=head_dim, rope_parameters=parameters).rope
    got, scale = inverse_frequencies(ours, head_dim)
    assert got == pytest.approx(want.tolist(), rel=1e-5)
    assert scale == pytest.approx(want_scale, rel=1e-6)


def test_unscaled_frequencies_are_a_geometric_series():
    got, scale = inverse_frequencies(RopeConfig(theta=10000.0), 4)
    assert (got, scale) == ([1.0, 0.01], 1.0)
