"""GGUF files written here, converted, and read back: numbers, names, order of rows, refusals."""

import json

import gguf
import numpy as np
import pytest
import torch

from ramify.srt.errors import ModelLoadError
from ramify.srt.weights.gguf import convert
from ramify.srt.weights.gguf_tensors import hf_name
from ramify.srt.weights.safetensors import SafetensorsSource
from ramify.srt.weights.safetensors_writer import BFloat16Tensor, to_bfloat16, write_sharded
from ramify.srt.weights.source import prepare

TYPE = gguf.GGMLQuantizationType
HIDDEN, HEADS, KV_HEADS, FFN, VOCAB = 256, 8, 4, 256, 260
HEAD_DIM = HIDDEN // HEADS
NORMAL = np.random.default_rng(7)


def tensors():
    """The tensors of one layer, in Hugging Face's order of rows."""
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate.weight": (FFN, HIDDEN),
        "blk.0.ffn_up.weight": (FFN, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, FFN),
    }
    return {name: NORMAL.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def interleaved(rows, n_heads):
    """What llama.cpp does to q and k of the architecture llama: pair (i, i + half) side by side."""
    heads = rows.reshape(n_heads, HEAD_DIM, -1)
    order = [j * (HEAD_DIM // 2) + i for i in range(HEAD_DIM // 2) for j in range(2)]
    return heads[:, order].reshape(rows.shape)


def write_gguf(path, arrays, arch="llama", quantised=None, keys=()):
    """`quantised` maps tensor names to (type, bytes) or to a type that gguf can quantise to."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<s>", "</s>", "<end>", "<pad>", *(chr(0x100 + i) for i in range(255)), "Āā"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * 256)
    writer.add_token_merges(["Ā ā"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(2)
    for key, value in keys:
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(f"{arch}.{key}", value)
    for name, array in arrays.items():
        kind = (quantised or {}).get(name)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            packed = array if array.dtype == np.uint8 else gguf.quantize(array, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def converted(tmp_path):
    def build(arrays, **options):
        file = write_gguf(tmp_path / "model.gguf", arrays, **options)
        folder = tmp_path / "folder"
        folder.mkdir()
        convert(file, folder)
        return folder

    return build


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def rounded(array):
    return torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16)


def test_rows_of_queries_and_keys_are_put_back(converted):
    """Each head has rows of its own: a wrong number of heads would show, too."""
    arrays = tensors()
    q, k = arrays["blk.0.attn_q.weight"], arrays["blk.0.attn_k.weight"]
    arrays["blk.0.attn_q.weight"] = interleaved(q, HEADS)
    arrays["blk.0.attn_k.weight"] = interleaved(k, KV_HEADS)
    source = SafetensorsSource(converted(arrays))
    layer = "model.layers.0.self_attn"
    assert torch.equal(source.read(f"{layer}.q_proj.weight", q.shape), rounded(q))
    assert torch.equal(source.read(f"{layer}.k_proj.weight", k.shape), rounded(k))
    v = arrays["blk.0.attn_v.weight"]
    assert torch.equal(source.read(f"{layer}.v_proj.weight", v.shape), rounded(v))


def test_qwen_keeps_its_rows_and_biases(converted):
    arrays = tensors()
    arrays["blk.0.attn_q.bias"] = np.arange(HIDDEN, dtype=np.float32)
    folder = converted(arrays, arch="qwen2")
    source, q = SafetensorsSource(folder), arrays["blk.0.attn_q.weight"]
    layer = "model.layers.0.self_attn.q_proj"
    assert torch.equal(source.read(f"{layer}.weight", q.shape), rounded(q))
    bias = arrays["blk.0.attn_q.bias"]
    assert torch.equal(source.read(f"{layer}.bias", bias.shape), rounded(bias))
    assert config_of(folder)["architectures"] == ["Qwen2ForCausalLM"]


def blocks(kind, shape):
    """Random bytes of a type that gguf reads but does not write, with sane block scales."""
    values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    packed = NORMAL.integers(0, 256, size=(shape[0], shape[1] // values, n_bytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    ends = (-2, None) if kind == TYPE.Q6_K else (0, 2)
    packed[..., slice(*ends)] = scale
    if kind == TYPE.Q4_K:
        packed[..., 2:4] = scale
    return packed.reshape(shape[0], -1)


def values_of(kind, packed, shape):
    """Q4_K and Q6_K, value by value, from the description of the formats."""
    found = []
    for block in packed.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1]):
        found += (_q4_k if kind == TYPE.Q4_K else _q6_k)(block)
    return np.array(found, np.float32).reshape(shape)


def _q4_k(block):
    d, least = block[:4].view(np.float16).astype(np.float32)
    packed, low = block[4:16].astype(int), block[16:].astype(int)
    found = []
    for part in range(8):
        if part < 4:
            scale, offset = packed[part] & 63, packed[part + 4] & 63
        else:
            scale = (packed[part + 4] & 15) | (packed[part - 4] >> 6 << 4)
            offset = (packed[part + 4] >> 4) | (packed[part] >> 6 << 4)
        nibbles = low[part // 2 * 32 :][:32] >> (4 * (part % 2)) & 15
        found += list(d * scale * nibbles - least * offset)
    return found


def _q6_k(block):
    low, high = block[:128].astype(int), block[128:192].astype(int)
    scales, d = block[192:208].view(np.int8), block[208:].view(np.float16).astype(np.float32)[0]
    found = []
    for i in range(256):
        half, row, column = i // 128, i // 32 % 4, i % 32
        nibble = low[half * 64 + row % 2 * 32 + column] >> (4 * (row // 2)) & 15
        bits = high[half * 32 + column] >> (2 * row) & 3
        found.append(d * scales[i // 16] * ((nibble | bits << 4) - 32))
    return found


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_number_types_are_read_as_gguf_reads_them(converted, name):
    arrays = tensors()
    given = arrays["blk.0.ffn_up.weight"]
    folder = converted(arrays, quantised={"blk.0.ffn_up.weight": TYPE[name]})
    got = SafetensorsSource(folder).read("model.layers.0.mlp.up_proj.weight", given.shape)
    want = gguf.dequantize(gguf.quantize(given, TYPE[name]), TYPE[name])
    assert torch.equal(got, rounded(want))
    assert torch.allclose(got.float(), torch.from_numpy(given), atol=0.5)  # and near what was meant


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_super_blocks_are_read_as_described(converted, name):
    arrays = tensors()
    shape = arrays["blk.0.ffn_up.weight"].shape
    packed = arrays["blk.0.ffn_up.weight"] = blocks(TYPE[name], shape)
    folder = converted(arrays, quantised={"blk.0.ffn_up.weight": TYPE[name]})
    got = SafetensorsSource(folder).read("model.layers.0.mlp.up_proj.weight", shape)
    want = values_of(TYPE[name], packed, shape)
    assert torch.allclose(got.float(), torch.from_numpy(want), rtol=2**-7, atol=1e-6)


def test_other_number_types_are_refused_by_name(converted):
    arrays = tensors()
    quantised = {"blk.0.ffn_up.weight": TYPE.Q5_0}
    with pytest.raises(ModelLoadError, match=r"blk\.0\.ffn_up\.weight is Q5_0.*Q4_K"):
        converted(arrays, quantised=quantised)


def test_the_config_says_what_the_file_says(converted):
    folder = converted(tensors() | {"output.weight": tensors()["token_embd.weight"]})
    config = config_of(folder)
    assert config["tie_word_embeddings"] is False
    assert (config["hidden_size"], config["num_key_value_heads"]) == (HIDDEN, KV_HEADS)
    assert (config["head_dim"], config["vocab_size"]) == (HEAD_DIM, VOCAB)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 10000.0)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [1, 2]  # the end of a text and the end of a turn


def test_without_an_output_layer_the_embeddings_are_tied(converted):
    assert config_of(converted(tensors()))["tie_word_embeddings"] is True


def test_a_head_may_be_wider_than_its_share(converted):
    arrays = tensors()
    arrays["blk.0.attn_q.weight"] = np.zeros((HEADS * 64, HIDDEN), np.float32)
    arrays["blk.0.attn_q_norm.weight"] = np.ones(64, np.float32)
    folder = converted(arrays, arch="qwen3", keys=[("attention.key_length", 64)])
    assert config_of(folder)["head_dim"] == 64
    source = SafetensorsSource(folder)
    assert source.has("model.layers.0.self_attn.q_norm.weight")


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        (
            [("rope.scaling.type", "linear"), ("rope.scaling.factor", 4.0)],
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            [
                ("rope.scaling.type", "yarn"),
                ("rope.scaling.factor", 4.0),
                ("rope.scaling.original_context_length", 128),
            ],
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_rope_scalings_are_kept(converted, keys, scaling):
    assert config_of(converted(tensors(), keys=keys))["rope_scaling"] == scaling


def test_llama3_scaling_is_recovered_from_its_divisors(converted):
    """GGUF keeps what the scaling comes to, per frequency; the config wants its four numbers."""
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        rope_parameters={"rope_theta": 10000.0, **scaling},
    )
    angles, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    arrays = tensors() | {"rope_freqs.weight": (plain / angles).numpy()}
    assert config_of(converted(arrays))["rope_scaling"] == scaling


def test_divisors_of_an_unknown_kind_are_refused(converted):
    arrays = tensors() | {"rope_freqs.weight": np.linspace(1, 3, HEAD_DIM // 2, dtype=np.float32)}
    with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight"):
        converted(arrays)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": "gemma3"}, "gemma3"),
        ({"keys": [("expert_count", 8)]}, "expert_count"),
        ({"keys": [("rope.scaling.type", "longrope")]}, "longrope"),
        ({"keys": [("rope.dimension_count", 16)]}, "dimension_count"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(converted, options, said):
    with pytest.raises(ModelLoadError, match=said):
        converted(tensors(), **options)


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "mtp.weight", "blk.x.attn_q.weight"]
)
def test_unknown_tensors_are_refused_by_name(name):
    """Leaving one out would give another model without a word."""
    with pytest.raises(ModelLoadError, match=name):
        hf_name(name)


@pytest.mark.parametrize("kept", [0, 3, 100, 5000])
def test_a_cut_file_is_refused(tmp_path, monkeypatch, kept):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "model.gguf", tensors())
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelLoadError, match=r"model\.gguf"):
        prepare(str(file))


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf", tensors())
    first = prepare(str(file))
    assert (first.name, first.has_tokenizer) == ("tiny", True)
    written = (first.path / "model.safetensors").stat().st_mtime_ns
    assert prepare(str(file)) == first
    assert (first.path / "model.safetensors").stat().st_mtime_ns == written
    write_gguf(file, tensors())
    assert prepare(str(file)).path != first.path


def test_bfloat16_is_rounded_like_torch():
    """To nearest, ties to even, over every sign and exponent; infinities and NaN as they are."""
    bits = NORMAL.integers(0, 2**32, size=100_000, dtype=np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    want = torch.from_numpy(values).to(torch.bfloat16)
    got = torch.from_numpy(to_bfloat16(values)).view(torch.bfloat16)
    number = ~torch.isnan(want)
    assert torch.equal(got[number], want[number])
    assert torch.isnan(got[~number]).all()


def test_large_models_are_cut_into_shards(tmp_path):
    arrays = {f"t{i}": NORMAL.normal(size=(16, 4)).astype(np.float32) for i in range(5)}
    tensors = [BFloat16Tensor(name, a.shape, lambda a=a: a) for name, a in arrays.items()]
    write_sharded(tensors, tmp_path, shard_bytes=300)  # two tensors of 128 bytes each
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    source = SafetensorsSource(tmp_path)
    for name, array in arrays.items():
        assert torch.equal(source.read(name, (16, 4)), rounded(array))
