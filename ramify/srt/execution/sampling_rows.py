"""What sampling remembers of a running request: penalties' counts, bias, seed, forbidden ends."""

from itertools import takewhile

import torch
from torch import Tensor

from ramify.srt.constrained.guard import Guarded
from ramify.srt.execution.random import uniform
from ramify.srt.execution.sampler import Draw
from ramify.srt.scheduling.plan import Enter

NEVER = float("-inf")


class SamplingRow:
    """The sampling state of one request. `adjust` changes logits; `note` learns a token."""

    def __init__(self, enter: Enter, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self.params = enter.sampling
        self.return_logprob = enter.return_logprob
        self.top_logprobs = enter.top_logprobs
        self._n_prompt = len(enter.prompt)
        self._n_output = 0
        self.last_token = -1  # none yet
        ends = () if self.params.ignore_eos else eos_token_ids
        self._ends = torch.tensor(sorted({*ends, *self.params.stop_token_ids}), dtype=torch.long)
        bias = self.params.logit_bias
        self._bias_ids = torch.tensor(list(bias), dtype=torch.long)
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float32)
        self._counts: Tensor | None = None  # [vocabulary] fp32, of generated tokens
        self._seen: Tensor | None = None  # [vocabulary] bool, of prompt and generated tokens
        if self.params.penalised:
            self._counts = torch.zeros(vocab_size)
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen[torch.tensor(enter.prompt.tolist())] = True
        self.matcher = None if enter.grammar is None else Guarded(enter.grammar.new_matcher())
        for token in enter.output:
            self.note(token)
            assert self.matcher is None or self.matcher.accept(token), "the output left its grammar"

    @property
    def adjusts(self) -> bool:
        """True when `adjust` would change anything."""
        too_short = self._n_output < self.params.min_new_tokens and len(self._ends) > 0
        return self._counts is not None or len(self._bias_ids) > 0 or too_short

    def note(self, token: int) -> None:
        """Remember a generated token."""
        self._n_output += 1
        self.last_token = token
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1.0
            self._seen[token] = True

    def follow(self, max_forced: int) -> tuple[tuple[int, ...], bool]:
        """Take what the grammar forces after the accepted token: (tokens, whether it ends there).

        Where log-probabilities are wanted, a forced token gets its own from the chunk that computes
        it. So what may end the request is left to be sampled.
        """
        if self.matcher is None:
            return (), False
        forced = self.matcher.forced()[:max_forced] if max_forced > 0 else []
        if self.return_logprob:
            ends = self._ends.tolist()
            forced = list(takewhile(lambda token: token not in ends, forced))
        for token in forced:
            assert self.matcher.accept(token), "a forced token is not allowed"
        complete = self.matcher.is_finished()
        if complete and forced and self.return_logprob:
            self.matcher.rollback(1)
            forced.pop()
            complete = False
        for token in forced:
            self.note(token)
        return tuple(forced), complete

    def adjust(self, logits: Tensor) -> None:
        """Apply penalties, bias and the minimum length to one row [vocabulary], in place.

        Repetition (Keskar et al., CTRL, 2019): positive logits of seen tokens are divided,
        negative ones multiplied. Frequency and presence are subtracted, as OpenAI defines them.
        """
        if self._counts is not None and self._seen is not None:
            seen = logits[self._seen]
            rate = self.params.repetition_penalty
            logits[self._seen] = torch.where(seen > 0, seen / rate, seen * rate)
            logits -= self.params.frequency_penalty * self._counts
            logits -= self.params.presence_penalty * (self._counts > 0)
        if len(self._bias_ids):
            logits[self._bias_ids] += self._bias
        if self._n_output < self.params.min_new_tokens:
            logits[self._ends] = NEVER

    def draw(self) -> Draw:
        """What the sampler needs for the next token."""
        p = self.params
        greedy = p.greedy
        random = 0.0 if greedy else uniform(p.sampling_seed or 0, self._n_prompt + self._n_output)
        return Draw(p.temperature, p.top_k, p.top_p, p.min_p, random, greedy)
