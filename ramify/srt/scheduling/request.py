"""One sequence as the scheduler sees it, and the table of what may happen to it.

             ADMIT             PREFILLED            FINISH
WAITING  ------------> PREFILL ---------> DECODE ------------> FINISHED
   ^  \\                  |  \\               |                   ^ ^
   |   `-----------------|---`--------------|---- FINISH -------' |
   `------ RETRACT ------'------ RETRACT ---'                     |
   (aborts and refusals are FINISH too) --------------------------'
"""

from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from ramify.radix_cache.page_keys import PageKeys
from ramify.radix_cache.prefix_cache import Lease
from ramify.radix_cache.tier_pages import Fetch
from ramify.srt.constrained.base import CompiledGrammar
from ramify.srt.messages import Submit, TokenLogprob


class State(StrEnum):
    WAITING = "waiting"  # holds no pages
    PREFILL = "prefill"  # has pages for all its tokens; not all are computed
    DECODE = "decode"  # all but the newest known token are computed
    FINISHED = "finished"  # answered; holds nothing


class Event(StrEnum):
    ADMIT = "admit"
    PREFILLED = "prefilled"
    RETRACT = "retract"
    FINISH = "finish"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.ADMIT): State.PREFILL,
    (State.WAITING, Event.FINISH): State.FINISHED,
    (State.PREFILL, Event.PREFILLED): State.DECODE,
    (State.PREFILL, Event.RETRACT): State.WAITING,
    (State.PREFILL, Event.FINISH): State.FINISHED,
    (State.DECODE, Event.RETRACT): State.WAITING,
    (State.DECODE, Event.FINISH): State.FINISHED,
}


class IllegalEvent(Exception):
    """A bug of ours: an event that the request's state does not allow. Nothing was changed."""


@dataclass(eq=False, slots=True)
class Request:
    """`tokens` is prompt and output; the first `computed` of them have their keys and values.

    Plans reach further than what is known, by the step in flight. `launched` positions are computed
    or in a launched plan, `ahead` tokens are being sampled:

        tokens      t0 t1 t2 t3 t4 t5                  a plan that computes 3..5 and samples is in
        computed    -------> 3                         flight, so position 6 can be planned, though
        launched    ----------------> 6   ahead 1      its token is not known: that chunk `follows`
    """

    submit: Submit
    number: int  # order of arrival
    tokens: "array[int]"
    prompt_length: int
    max_new_tokens: int
    arrived_s: float
    state: State = State.WAITING
    lease: Lease | None = None
    computed: int = 0
    launched: int = 0
    ahead: int = 0
    admission: int = 0  # the number of its latest admission
    cached_tokens: int = -1  # found computed at the first admission; -1 before it
    host_tokens: int = 0  # those of them that were in host memory, ...
    disk_tokens: int = 0  # ... and those that came from disk
    admitted_s: float = -1.0
    first_token_s: float = -1.0
    retractions: int = 0
    miss_reason: str | None = None  # at the first admission: see PrefixCache.miss_reason
    overtaken: int = 0  # up to its latest admission; while it waits, ask `Aging`
    blocker: "Request | None" = None  # the prefill that it is parked behind, and ...
    shared: int = 0  # ... the length of the trunk that it waits for
    hit: int = 0  # last known length of the cached prefix, while waiting, ...
    hit_on_device: int = 0  # ... and of what needs no page to be loaded to
    hit_version: int = -1  # of the cache when `hit` was found
    page_keys: PageKeys | None = None  # of `tokens`, if the cache has tiers
    fetched: bool = False  # since it waits: once is enough
    fetch: Fetch | None = None  # what it fetched, while it waits
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs_sent: bool = False
    grammar: CompiledGrammar | None = None
    jumped: int = 0  # forced tokens of the output
    told: int = 0  # tokens of the output that the frontend knows; ...
    forced_logprobs: list[TokenLogprob] = field(default_factory=list)  # ... scores of the others

    @property
    def id(self) -> str:
        return self.submit.request_id

    @property
    def held_lease(self) -> Lease:
        """The lease of a running request."""
        assert self.lease is not None, f"request {self.id} is {self.state} and holds no pages"
        return self.lease

    @property
    def n_output(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def length(self) -> int:
        """Tokens known and being sampled."""
        return len(self.tokens) + self.ahead

    @property
    def decodes(self) -> bool:
        """Whether nothing but its newest token is left to compute, whether it is known or not."""
        return self.ahead > 0 or self.state is State.DECODE

    @property
    def goes_on(self) -> bool:
        """Whether its next token may be planned: there may be one, and what is allowed is known.

        What a grammar allows next depends on the token that is being sampled.
        """
        if self.grammar is not None and self.ahead:
            return False
        return self.n_output + self.ahead < self.max_new_tokens

    @property
    def max_forced(self) -> int:
        """How many tokens may follow the next sampled one unsampled.

        Their log-probabilities come from the chunk that computes them. If they are wanted, there
        must be one more.
        """
        if self.grammar is None:
            return 0
        return self.max_new_tokens - self.n_output - 1 - self.submit.return_logprob

    @property
    def ran(self) -> bool:
        """Whether it was ever admitted."""
        return self.cached_tokens >= 0

    @property
    def deadline(self) -> float:
        timeout_s = self.submit.timeout_s
        return inf if timeout_s is None else self.arrived_s + timeout_s

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.submit.logprob_start >= 0 and not self.prompt_logprobs_sent

    @property
    def unscored(self) -> range:
        """The positions of tokens whose log-probability is wanted from the chunks to come."""
        if self.wants_prompt_logprobs:
            return range(self.submit.logprob_start, self.prompt_length)
        if self.submit.return_logprob:
            return range(self.prompt_length + self.told, len(self.tokens))
        return range(0)

    @property
    def reuse_limit(self) -> int:
        """How many tokens may come from the cache: the last one never, its logits are needed.

        The token before the first one to be scored is computed too: it predicts it.
        """
        limit = len(self.tokens) - 1
        if self.unscored:
            limit = min(limit, max(self.unscored.start - 1, 0))
        return limit

    def on(self, event: Event) -> None:
        """Follow the table. Raises IllegalEvent, changing nothing."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise IllegalEvent(f"{event} of request {self.id} while {self.state}") from None
