"""What a request's frontend is told, and when a request is over."""

from collections.abc import Sequence

from ramify.srt.ids import FinishReason
from ramify.srt.messages import Finished, Rejected, Submit, TokenLogprob, Tokens
from ramify.srt.scheduling.request import Request


def ended(request: Request, eos_token_ids: Sequence[int]) -> tuple[FinishReason, int | None] | None:
    """Why the request is over, with the token that ended it; None while it is not."""
    sampling = request.submit.sampling
    if request.n_output and request.n_output >= sampling.min_new_tokens:
        last = request.tokens[-1]
        if last in sampling.stop_token_ids:
            return FinishReason.STOP, last
        if last in eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP, last
    if request.n_output >= request.max_new_tokens:
        return FinishReason.LENGTH, None
    return None


def tokens(request: Request, token: TokenLogprob | None) -> Tokens:
    """The news of one step; prompt log-probabilities go along once, when they are complete.

    `token` was sampled. Tokens forced before it are told with their scores if these are wanted,
    those forced after it then wait for theirs; else they are told at once.
    """
    prompt = None
    if request.wants_prompt_logprobs:
        prompt, request.prompt_logprobs = request.prompt_logprobs, []
        request.prompt_logprobs_sent = True
    scored = None
    if request.submit.return_logprob:
        scored = [*request.forced_logprobs, token] if token is not None else []
        request.forced_logprobs = []
        news = [entry.token_id for entry in scored]
    else:
        news = request.tokens[request.prompt_length + request.told :].tolist()
    request.told += len(news)
    return Tokens(
        request_id=request.id,
        token_ids=news,
        cached_tokens=request.cached_tokens,
        logprobs=scored,
        prompt_logprobs=prompt,
    )


def finished(request: Request, reason: FinishReason, matched: int | None, now: float) -> Finished:
    """The last word on a request."""
    admitted_s = request.admitted_s if request.admitted_s >= 0 else now
    first_token_s = request.first_token_s if request.first_token_s >= 0 else now
    return Finished(
        request_id=request.id,
        reason=reason,
        matched=matched,
        prompt_tokens=request.prompt_length,
        cached_tokens=max(request.cached_tokens, 0),
        completion_tokens=request.n_output,
        retractions=request.retractions,
        queue_s=admitted_s - request.arrived_s,
        ttft_s=first_token_s - request.arrived_s,
        miss_reason=request.miss_reason,
        jump_forward_tokens=request.jumped,
        unenforced=[] if request.grammar is None else list(request.grammar.unenforced),
        host_tokens=request.host_tokens,
        disk_tokens=request.disk_tokens,
    )


def failed(request: Request, error: str) -> Rejected:
    """The last word on a request whose grammar came to no end."""
    grammar = request.submit.grammar
    param = None if grammar is None else grammar.param
    return Rejected(request.id, "InvalidRequest", error, param, "invalid_grammar")


def refused(submit: Submit, kind: str, text: str, param: str | None = None) -> Rejected:
    """The answer to a request that is not taken. `kind` is the name of a class in `errors`."""
    return Rejected(submit.request_id, kind, text, param)


def unstarted(submit: Submit, reason: FinishReason, waited_s: float) -> Finished:
    """The last word on a request that never reached the queue."""
    return Finished(
        request_id=submit.request_id,
        reason=reason,
        matched=None,
        prompt_tokens=len(submit.token_ids) // 4,
        cached_tokens=0,
        completion_tokens=0,
        retractions=0,
        queue_s=waited_s,
        ttft_s=waited_s,
    )
