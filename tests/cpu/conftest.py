"""One torch thread for everything that computes, as the suite shares two cores with its servers."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_again():
    """A test may ask an engine for more threads; the next one starts with one."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2():
    """The folder of the embedded model, downloaded on first use."""
    from ramify.srt.weights.source import prepare

    return prepare("smollm2")
