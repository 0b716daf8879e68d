"""The small vocabulary every room of the runtime shares."""

from enum import StrEnum


class FinishReason(StrEnum):
    """Why a request ended. `STOP`: an end token, stop id or string. `LENGTH`: out of budget.

    `TIMEOUT`: past its deadline.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    TIMEOUT = "timeout"
