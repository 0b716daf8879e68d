"""The numbers that bound a scheduler, as one value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """`context_length` is at most the tokens the pool holds, so that any request fits it alone.

    `step_tokens` is at least `max_running_requests`: every decoding request gets its row.
    """

    context_length: int
    eos_token_ids: tuple[int, ...]
    step_tokens: int
    max_running_requests: int
    max_queued_requests: int
    starvation_bound: int
