"""A model, a grammar and a runner without tensors: what is computed is which tokens can be read."""

import sys
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

from ramify.srt.messages import TokenLogprob
from ramify.srt.scheduling.plan import ChunkResult, Enter, StepPlan, StepResult

sys.path.insert(0, str(Path(__file__).parent))
from draws import EOS
from fake_tiers import FakeTiers

N_TOKENS = 7


def next_token(tokens: "array[int]") -> int:
    """The fake model: any change in any earlier token shows. Ends one time in fourteen."""
    digest = zlib.crc32(tokens.tobytes())
    return EOS if digest % 14 == 0 else 1 + digest // 14 % (N_TOKENS - 1)


@dataclass(frozen=True)
class FakeGrammar:
    """Forces the tokens that would be sampled anyway, a few at a time: so no output may change."""

    unenforced: tuple[str, ...] = ()

    def forced(self, seen: "array[int]", most: int, ends: tuple[int, ...]) -> tuple[int, ...]:
        sequence, run = array("I", seen), []
        while len(run) < min(most, zlib.crc32(seen.tobytes()) % 5):
            token = next_token(sequence)
            if token in ends:
                break
            sequence.append(token)
            run.append(token)
        return tuple(run)


class FakeRunner(FakeTiers):
    """Carries out plans on slots that hold tokens. Asserts that a plan is one a runner could do."""

    def __init__(self, n_pages: int, page_size: int, n_slots: int) -> None:
        super().__init__(n_pages, page_size, n_slots)
        self.rows: dict[str, int] = {}  # by request: the token it sampled last
        self.enters: dict[str, Enter] = {}

    def run(self, plan: StepPlan) -> StepResult:
        for request_id in plan.leaves:
            del self.rows[request_id], self.enters[request_id]
        for enter in plan.enters:
            assert enter.request_id not in self.rows
            self.rows[enter.request_id] = -1
            self.enters[enter.request_id] = enter
        self.carry_out(plan.moves)
        for chunk in plan.chunks:  # all writes of a step come before all reads, as in a layer
            last = self.rows[chunk.request_id]
            tokens = [last] if chunk.follows else chunk.tokens
            for position, token in enumerate(tokens, chunk.start):
                page = chunk.pages[position // self.page_size]
                self.slots[page][position % self.page_size] = token
        return StepResult(tuple(self._result(chunk) for chunk in plan.chunks))

    def _result(self, chunk) -> ChunkResult:
        seen = array("I", self.read(chunk.pages, chunk.start + len(chunk.tokens)))
        token = TokenLogprob(-1.0, next_token(seen)) if chunk.samples else None
        forced: tuple[int, ...] = ()
        if token is not None:
            self.rows[chunk.request_id] = token.token_id
            forced = self._forced(chunk, array("I", [*seen, token.token_id]))
        rows = range(chunk.first_target_row, chunk.first_target_row + len(chunk.targets))
        scores = [
            # the score of a target says which row it came from, so a shifted row shows
            TokenLogprob(-float(chunk.start + row), target)
            for row, target in zip(rows, chunk.targets, strict=True)
        ]
        assert all(0 <= row < len(chunk.tokens) for row in rows)
        return ChunkResult(token, tuple(scores), forced)

    def _forced(self, chunk, seen: "array[int]") -> tuple[int, ...]:
        """Never an end; with scores wanted, no stop id either: both are sampled."""
        enter = self.enters[chunk.request_id]
        if enter.grammar is None or seen[-1] == EOS:
            return ()
        stops = enter.sampling.stop_token_ids if enter.return_logprob else ()
        return enter.grammar.forced(seen, chunk.max_forced, (EOS, *stops))
