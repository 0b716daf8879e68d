"""Folding an engine's messages into a reply: text as it comes, stops, counts, log-probabilities."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from byte_tokenizer import EOS, byte_tokenizer
from msgspec.structs import replace

from ramify.srt import errors
from ramify.srt.grammar import GrammarSpec
from ramify.srt.messages import (
    Finished,
    ModelInfo,
    Rejected,
    Submit,
    TokenLogprob,
    Tokens,
    pack_ids,
)
from ramify.srt.reasoning import Parts
from ramify.srt.replies import ReplyAssembler, model_info
from ramify.srt.sampling_params import SamplingParams

INFO = ModelInfo(1024, 64, (EOS,), "float32", "cpu", "Fake", 0, 64, 0.0)
TOKENIZER = byte_tokenizer()


def assembler(tokenizer=TOKENIZER, *, with_texts=False, submit=None, **sampling) -> ReplyAssembler:
    submit = submit or Submit("r", pack_ids([1, 2, 3]), SamplingParams(**sampling))
    return ReplyAssembler(submit, tokenizer, INFO, now=10.0, return_text_in_logprobs=with_texts)


def thinker(tokenizer=TOKENIZER, parser="mistral", grammar=None, **sampling) -> ReplyAssembler:
    submit = Submit("r", pack_ids([1]), SamplingParams(**sampling), grammar=grammar, reasoning=True)
    info = replace(INFO, reasoning_parser=parser)
    return ReplyAssembler(submit, tokenizer, info, now=10.0)


def feed(made: ReplyAssembler, ids, size: int = 1) -> list[str]:
    """Push ids in messages of `size`; the text that each gave."""
    ids = list(ids)
    deltas = []
    for at in range(0, len(ids), size):
        made.push(Tokens("r", ids[at : at + size], 2), 11.0)
        deltas.append(made.delta())
    return deltas


def end(made: ReplyAssembler, reason="length", matched=None) -> dict:
    count = len(made.output_ids)
    made.push(Finished("r", reason, matched, 3, 2, count, 1, 0.25, 0.5), 12.5)
    return made.reply()


def test_text_comes_as_it_is_decoded_and_never_half_a_character():
    made = assembler()
    assert feed(made, "aé€".encode()) == ["a", "", "é", "", "", "€"]
    reply = end(made)
    assert reply["text"] == "aé€"
    assert reply["output_ids"] == list("aé€".encode())
    assert reply["meta_info"] == {
        "id": "r",
        "finish_reason": {"type": "length", "length": 6},
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "cached_tokens": 2,
        "cached_tokens_details": {"device": 2, "host": 0, "disk": 0},
        "computed_tokens": 1,
        "cache_miss_reason": None,
        "jump_forward_tokens": 0,
        "e2e_latency": 2.5,
        "num_retractions": 1,
        "queue_time": 0.25,
        "ttft": 0.5,
    }


def test_a_reply_before_the_end_has_no_reason():
    made = assembler()
    feed(made, b"ab")
    reply = made.reply()
    assert (reply["text"], reply["meta_info"]["finish_reason"]) == ("ab", None)
    assert reply["meta_info"]["cached_tokens"] == 2
    assert "ttft" not in reply["meta_info"], "known at the end only"


def test_the_end_says_why_prompt_tokens_were_computed():
    made = assembler()
    feed(made, b"ab")
    assert made.reply()["meta_info"]["cache_miss_reason"] is None
    made.push(Finished("r", "length", None, 3, 1, 2, 0, 0.0, 0.0, "evicted"), 12.0)
    meta = made.reply()["meta_info"]
    assert (meta["cached_tokens"], meta["computed_tokens"]) == (1, 2)
    assert meta["cache_miss_reason"] == "evicted"


def test_the_end_says_where_cached_tokens_were():
    made = assembler()
    feed(made, b"ab")
    assert made.reply()["meta_info"]["cached_tokens_details"] is None, "known at the end only"
    made.push(Finished("r", "length", None, 30, 20, 2, 0, 0.0, 0.0, None, 5, 7), 12.0)
    meta = made.reply()["meta_info"]
    assert meta["cached_tokens_details"] == {"device": 8, "host": 5, "disk": 7}
    assert meta["cached_tokens"] == 20


def test_the_end_of_a_constrained_output_says_what_its_grammar_did():
    made = assembler()
    feed(made, b"ab")
    assert made.reply()["meta_info"]["jump_forward_tokens"] is None, "known at the end only"
    end = Finished("r", "stop", None, 3, 0, 2, 0, 0.0, 0.0, None, 0, 0, 1, ["not", "if"])
    made.push(end, 12.0)
    meta = made.reply()["meta_info"]
    assert meta["jump_forward_tokens"] == 1
    assert "unenforced_keywords" not in meta, "nothing was asked"
    assert made.unenforced == ["not", "if"]
    spec = GrammarSpec("json_schema", "{}", strict=False)
    asked = assembler(submit=Submit("r", pack_ids([1]), SamplingParams(), grammar=spec))
    asked.push(end, 12.0)
    meta = asked.reply()["meta_info"]
    assert meta["unenforced_keywords"] == ["not", "if"]
    assert meta["finish_reason"] == {"type": "stop", "matched": None}


def test_a_timeout_is_an_abort_that_says_so():
    made = assembler()
    feed(made, b"ab")
    reply = end(made, "timeout")
    assert reply["text"] == "ab", "what there is by then is the reply"
    assert reply["meta_info"]["finish_reason"] == {
        "type": "abort",
        "message": "the request ran out of its timeout_s",
        "err_type": "timeout",
    }


def test_half_a_character_at_the_end_is_shown_as_replaced():
    made = assembler()
    assert feed(made, b"a\xe2\x82") == ["a", "", ""]
    assert end(made)["text"] == "a\ufffd"
    assert made.delta() == "\ufffd"


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_a_stop_string_ends_the_reply_however_the_tokens_come(size):
    """Counts stop at the token that completed the stop, though later ones came with it."""
    made = assembler(stop=("STOP", "never"))
    deltas = feed(made, b"one STOP two", size)
    assert made.wants_abort
    assert "".join(deltas) == "one "
    reply = end(made, "abort")
    assert reply["text"] == "one "
    assert reply["output_ids"] == list(b"one STOP")
    assert reply["meta_info"]["completion_tokens"] == 8
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": "STOP"}


def test_no_stop_trim_keeps_the_stop():
    made = assembler(stop=("STOP",), no_stop_trim=True)
    feed(made, b"one STOP two")
    assert end(made, "abort")["text"] == "one STOP"


def test_text_that_might_become_a_stop_is_held_back_and_then_released():
    made = assembler(stop=("STOP",))
    assert feed(made, b"a ST") == ["a", " ", "", ""]
    assert not made.wants_abort
    assert end(made)["text"] == "a ST"
    assert made.delta() == "ST"


def test_stop_strings_wait_for_min_new_tokens():
    made = assembler(stop=("\n",), min_new_tokens=3)
    feed(made, b"\n\na\nb")
    assert end(made, "abort")["text"] == "\n\na"
    assert made.output_ids == list(b"\n\na\n")


def test_an_end_token_gives_no_text_and_is_counted():
    made = assembler(skip_special_tokens=False)
    feed(made, [*b"ab", EOS])
    reply = end(made, "stop", EOS)
    assert reply["text"] == "ab"
    assert reply["output_ids"] == [*b"ab", EOS]
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS}


def test_a_stop_id_gives_no_text_unless_it_ended_nothing():
    """With min_new_tokens the engine goes on after a stop id: then it is text."""
    made = assembler(stop_token_ids=(ord("x"),))
    assert feed(made, b"axb") == ["a", "", "xb"]
    feed(made, b"x")
    assert end(made, "stop", ord("x"))["text"] == "axb"
    cut = assembler(stop_token_ids=(ord("x"),))
    feed(cut, b"ax")
    assert end(cut, "length")["text"] == "ax", "it ended by length, not by the stop id"


def test_no_stop_trim_keeps_the_end_token():
    made = assembler(stop_token_ids=(ord("x"),), no_stop_trim=True)
    assert feed(made, b"ax") == ["a", "x"]
    assert end(made, "stop", ord("x"))["text"] == "ax"


def test_an_end_token_is_text_when_it_is_to_be_ignored():
    made = assembler(ignore_eos=True, skip_special_tokens=False)
    feed(made, [ord("a"), EOS, ord("b")])
    assert end(made)["text"] == "a<|end|>b"


def test_an_abort_gives_what_there_is():
    made = assembler()
    feed(made, b"ab")
    reply = end(made, "abort")
    assert reply["text"] == "ab"
    assert reply["meta_info"]["finish_reason"]["type"] == "abort"


def test_nothing_generated_is_an_empty_reply():
    reply = end(assembler())
    assert (reply["text"], reply["output_ids"]) == ("", [])
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 0}


def test_without_a_tokenizer_there_are_ids_and_no_text():
    made = assembler(None, stop=("a",))
    feed(made, b"abc")
    reply = end(made)
    assert (reply["text"], reply["output_ids"]) == ("", list(b"abc"))


@pytest.mark.parametrize("kind", ["InvalidRequest", "QueueFull", "Unavailable", "Aborted"])
def test_a_rejection_raises_the_error_it_names(kind):
    with pytest.raises(getattr(errors, kind), match="because") as caught:
        assembler().push(Rejected("r", kind, "because", "text", "why"), 11.0)
    assert (caught.value.param, caught.value.code) == ("text", "why")


def test_a_rejection_of_an_unknown_kind_is_a_server_error():
    with pytest.raises(errors.RequestError) as caught:
        assembler().push(Rejected("r", "Novel", "because"), 11.0)
    assert caught.value.status == 500


def logprob_submit(top: int) -> Submit:
    return Submit("r", pack_ids([1, 2, 3]), SamplingParams(stop=("c",)), "", True, 0, top)


def test_logprobs_are_triples_cut_where_the_tokens_are():
    made = assembler(submit=logprob_submit(0))
    prompt = [TokenLogprob(None, 1), TokenLogprob(-1.5, 2)]
    logprobs = [TokenLogprob(-0.5, byte) for byte in b"bcd"]
    made.push(Tokens("r", list(b"bcd"), 0, logprobs, prompt), 11.0)
    meta = end(made, "abort")["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 1, None], [-1.5, 2, None]]
    assert meta["output_token_logprobs"] == [[-0.5, ord("b"), None], [-0.5, ord("c"), None]]
    assert meta["output_token_logprobs_length"] == 2
    assert "output_top_logprobs" not in meta


def test_top_logprobs_and_texts_come_when_asked_for():
    made = assembler(submit=logprob_submit(2), with_texts=True)
    top = [(-0.5, ord("b")), (-1.0, 0xE2)]
    first = TokenLogprob(None, ord("a"))
    made.push(Tokens("r", [ord("b")], 0, [TokenLogprob(-0.5, ord("b"), top)], [first]), 11.0)
    meta = end(made)["meta_info"]
    assert meta["input_token_logprobs"] == [[None, ord("a"), "a"]]
    assert meta["output_token_logprobs"] == [[-0.5, ord("b"), "b"]]
    assert meta["output_top_logprobs"] == [[[-0.5, ord("b"), "b"], [-1.0, 0xE2, "bytes:\\xe2"]]]
    assert meta["input_top_logprobs"] == [None], "nothing predicts the first token"


def test_model_info_says_what_a_client_needs():
    info = model_info(INFO, "/models/x", "x", TOKENIZER)
    assert info["chat_template"] == TOKENIZER.chat.source
    assert (info["bos_token"], info["eos_token"]) == (None, "<|end|>")
    assert (info["vocab_size"], info["context_length"]) == (1024, 64)
    assert info["eos_token_ids"] == [EOS]
    bare = model_info(INFO, "dummy:x", "x", None)
    assert (bare["chat_template"], bare["eos_token"]) == (None, None)


# --- thinking -----------------------------------------------------------------------------------


def test_markers_that_are_special_tokens_are_text_too():
    """Who splits the text must find them; other special tokens are skipped as ever."""
    tokenizer = byte_tokenizer("[THINK]", "[/THINK]", "<pad>")
    ids = [EOS + 1, *b"a", EOS + 3, EOS + 2, *b"b"]
    made = thinker(tokenizer)
    feed(made, ids)
    reply = end(made)
    assert reply["text"] == "[THINK]a[/THINK]b"
    assert reply["meta_info"]["reasoning_tokens"] == 4
    assert made.splitter().push(reply["text"]) == Parts("a", "b")
    plain = assembler(tokenizer)
    feed(plain, ids)
    assert end(plain)["text"] == "ab"


def test_thinking_is_counted_to_the_token_that_ends_it():
    """Whatever a stop string holds back."""
    made = thinker(parser="qwen3", stop=("k>xyz",))
    text, thought = b"<think>a</think>xy", len(b"<think>a</think>")
    for n, byte in enumerate(text, 1):
        feed(made, [byte])
        assert made.reasoning_tokens == (min(n, thought) if n >= len(b"<think>") else 0)
    assert end(made)["meta_info"]["reasoning_tokens"] == thought


def test_what_a_grammar_does_not_apply_to_is_thinking():
    grammar = GrammarSpec("regex", "b")
    for spec, parser, count in (
        (None, "qwen3", 0),
        (grammar, "qwen3", 9),
        (None, "deepseek-r1", 9),
    ):
        made = thinker(parser=parser, grammar=spec)
        feed(made, b"a</think>b")
        assert end(made)["meta_info"]["reasoning_tokens"] == count


def test_without_thinking_none_is_counted():
    made = assembler()
    feed(made, b"<think>a</think>b")
    assert "reasoning_tokens" not in end(made)["meta_info"]
    assert made.splitter() is None
