"""The numbers that bound a scheduler, as one value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """`context_length` is at most the tokens the pool holds, so that any request fits it alone.

    `step_tokens` is at least `max_running_requests`: every decoding request gets its row. Beside
    decoding requests at most `mixed_tokens` for each prompt that wants them; None: no such bound.
    No more than `max_queued_tokens` prompt tokens wait, but a prompt that is longer by itself is
    taken when nothing else waits.
    """

    context_length: int
    eos_token_ids: tuple[int, ...]
    step_tokens: int
    max_running_requests: int
    max_queued_requests: int
    starvation_bound: int
    schedule_policy: str = "lpm"  # a name in queue_policy.POLICIES
    max_queued_tokens: int | None = None
    mixed_tokens: int | None = None
    jump_forward: bool = True  # whether forced tokens are taken unsampled
