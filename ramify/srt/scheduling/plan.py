"""The contract between deciding and doing: what one step computes, and what came of it.

Everything is a chunk: rows of one request at consecutive positions, with its page table. A prefill
chunk has many rows, a decode row is a chunk of one. Only integers and tuples; a plan can be
printed, stored and replayed.

Plans are carried out in order, one after the other. So a plan may be made while the one before it
still runs (overlap), and name tokens that are not known yet:

    plan 7   r: positions 0..4, samples            runs
    plan 8   r: position 5, follows                made meanwhile: its token is what plan 7 samples
"""

from array import array
from dataclasses import dataclass

from ramify.radix_cache.plans import Move
from ramify.srt.constrained.base import CompiledGrammar
from ramify.srt.messages import TokenLogprob
from ramify.srt.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Enter:
    """A request starts (or resumes): what sampling needs to know of it, for as long as it runs."""

    request_id: str
    sampling: SamplingParams
    prompt: "array[int]"
    output: "array[int]"  # tokens generated before a retraction
    top_logprobs: int
    return_logprob: bool
    grammar: CompiledGrammar | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute `tokens` at positions start, start + 1, ... and keep their keys and values.

    `pages[k]` holds positions k * P .. (k + 1) * P - 1. With `samples`, the logits of the last row
    choose the next token. `targets` are tokens whose log-probability is wanted: targets[i] is
    scored by row `first_target_row + i`. A chunk that `follows` has one row, whose token is the one
    that the request sampled last; `tokens` only holds its place. The scheduler counts admissions:
    the result of a chunk from an `admission` that is over is not wanted any more. `max_forced` is
    how many tokens a grammar may add to the sampled one.
    """

    request_id: str
    admission: int
    start: int
    tokens: "array[int]"
    pages: tuple[int, ...]
    samples: bool
    first_target_row: int = 0
    targets: tuple[int, ...] = ()
    follows: bool = False
    max_forced: int = 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, executed in this order: `leaves`, `enters`, `moves`, all `chunks` as one batch."""

    number: int
    leaves: tuple[str, ...]
    enters: tuple[Enter, ...]
    moves: tuple[Move, ...]
    chunks: tuple[Chunk, ...]

    @property
    def n_tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What came of one chunk: the sampled token, if it samples, and the scores of its targets.

    `forced` are the tokens that a grammar lets follow alone: they are part of the output, not
    computed yet. With `complete` the grammar is at its end after them. `error` says why it cannot
    go on: the request is over, and there is no token.
    """

    token: TokenLogprob | None
    target_logprobs: tuple[TokenLogprob, ...] = ()
    forced: tuple[int, ...] = ()
    complete: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results in the order of the plan's chunks."""

    chunks: tuple[ChunkResult, ...]
