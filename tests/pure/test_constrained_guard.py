"""A mask that takes long holds up every request of the batch: its own request has to go."""

import time
from dataclasses import dataclass

import numpy as np
import pytest

from ramify.srt.constrained.base import GrammarError
from ramify.srt.constrained.guard import fill_within


@dataclass
class Matcher:
    """Fills a row after work, or after a wait in which others have the processor."""

    work_s: float = 0.0
    wait_s: float = 0.0

    def fill(self, row) -> bool:
        time.sleep(self.wait_s)
        ends = time.thread_time() + self.work_s
        while time.thread_time() < ends:
            pass
        row[:] = -1
        return True


def test_a_mask_that_takes_too_much_work_fails():
    with pytest.raises(GrammarError) as caught:
        fill_within(Matcher(work_s=0.03), np.zeros(2, np.int32), limit_s=0.02)
    assert caught.value.code == "grammar_timeout"


def test_a_busy_machine_fails_nobody():
    """The request whose mask waited for the processor did nothing wrong."""
    row = np.zeros(2, np.int32)
    assert fill_within(Matcher(wait_s=0.05), row, limit_s=0.02)
    assert row.all()
