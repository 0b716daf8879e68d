"""Building tokenizer.json from a GGUF file's metadata.

GGUF names two kinds: `gpt2` (byte-level BPE, with one of a few ways to split text first) and
`llama` (SentencePiece: BPE over characters, bytes as a last resort, merges given by scores).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as splitting
from tokenizers.processors import TemplateProcessing

from ramify.srt.errors import ModelLoadError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # GGUF's token types that matter here
SPACE = "▁"  # how SentencePiece writes a space
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = _WORDS.replace("NUMBER", r"\p{N}{1,3}")
QWEN2_WORDS = _WORDS.replace("NUMBER", r"\p{N}")
BEGIN_BY_DEFAULT = ("llama-bpe",)  # splitters whose models start with a BOS unless the file says no


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja to `folder`.

    Raises ModelLoadError naming a kind of tokenizer that is not supported.
    """
    tokens: list[str] = _need(metadata, "tokens")
    try:
        tokenizer = _build(metadata, tokens)
    except (ValueError, IndexError) as error:  # lists that do not fit together
        raise ModelLoadError(f"the GGUF file's tokenizer is broken: {error}") from error
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None and token_id < len(tokens):
            config[f"{name}_token"] = tokens[token_id]
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, "utf-8")
    template = metadata.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, "utf-8")


def _build(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    kind = _need(metadata, "model")
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if kind == "gpt2":
        splitter = metadata.get("tokenizer.ggml.pre", "default")
        tokenizer = _byte_level(splitter, tokens, _need(metadata, "merges"))
        begins = splitter in BEGIN_BY_DEFAULT
    elif kind == "llama":
        prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
        tokenizer = _sentencepiece(tokens, types, _need(metadata, "scores"), prefix)
        begins = True
    else:
        raise ModelLoadError(f"GGUF tokenizer.ggml.model {kind!r} is not supported: gpt2, llama")
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    _add_ends(tokenizer, metadata, tokens, begins)
    return tokenizer


def _byte_level(splitter: str, tokens: list[str], merges: list[str]) -> Tokenizer:
    if splitter not in _SPLITTERS:
        known = ", ".join(_SPLITTERS)
        raise ModelLoadError(f"GGUF tokenizer.ggml.pre {splitter!r} is not supported: {known}")
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    # With Llama 3 a word that is a token is that token, whatever the merges say.
    tokenizer = Tokenizer(_bpe(tokens, pairs, ignore_merges=splitter == "llama-bpe"))
    if splitter == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _SPLITTERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        return models.BPE(vocab=vocab, merges=merges, **options)
    except Exception as error:  # the library raises nothing more precise
        raise ModelLoadError(f"the GGUF file's tokenizer is broken: {error}") from error


def _by_words(pattern: str) -> splitting.PreTokenizer:
    return splitting.Sequence(
        [
            splitting.Split(Regex(pattern), "isolated"),
            splitting.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> splitting.PreTokenizer:
    return splitting.ByteLevel(add_prefix_space=False, use_regex=True)


_SPLITTERS: dict[str, Callable[[], splitting.PreTokenizer]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "smollm": lambda: splitting.Sequence([splitting.Digits(individual_digits=True), _gpt2()]),
    "llama-bpe": lambda: _by_words(LLAMA3_WORDS),
    "qwen2": lambda: _by_words(QWEN2_WORDS),
}


def _sentencepiece(
    tokens: list[str], types: list[int], scores: list[float], prefix: bool
) -> Tokenizer:
    model = _bpe(
        tokens,
        merges_of_scores(tokens, scores),
        unk_token=tokens[types.index(UNKNOWN)] if UNKNOWN in types else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    before = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, spaces])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return tokenizer


def merges_of_scores(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the best score of the result first.

    SentencePiece merges the neighbours whose result scores best; BPE merges the neighbours listed
    first. Equal scores are ordered by the ids of the parts.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    found = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right))
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


def _add_ends(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], begins: bool
) -> None:
    """Have `encode` put BOS before a text, and EOS behind it, where the model wants them."""
    ends: dict[str, int] = {}
    for name, default in (("bos", begins), ("eos", False)):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if metadata.get(f"tokenizer.ggml.add_{name}_token", default) and token_id is not None:
            ends[name] = token_id
    if ends:
        before = [tokens[ends["bos"]]] if "bos" in ends else []
        after = [tokens[ends["eos"]]] if "eos" in ends else []
        tokenizer.post_processor = TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(tokens[i], i) for i in dict.fromkeys(ends.values())],
        )


def _need(metadata: Mapping[str, Any], name: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise ModelLoadError(f"the GGUF file has no key tokenizer.ggml.{name}")
    return value
