"""The exception tree. Everything we raise on purpose is in it; the rest is a bug of ours.

RamifyError
|-- ConfigError             the operator's options contradict each other or the machine
|-- ModelLoadError          a model folder, file or download that cannot be used
`-- RequestError            one request cannot be served; the others are not touched
    |-- InvalidRequest      400: the caller's fault; `param` names the field
    |-- QueueFull           503: try again after `retry_after_s`
    |-- Unavailable         503: starting, draining, or the engine was lost and is coming back
    `-- Aborted             499: ended by /abort_request
"""


class RamifyError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(RamifyError):
    """Options that contradict each other or the machine. The message says what would be right."""


class ModelLoadError(RamifyError):
    """A model that cannot be used. The message names the file and what is wrong with it."""


class RequestError(RamifyError):
    """One request cannot be served. Carries all that an HTTP error body needs."""

    status = 500
    kind = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(RequestError):
    """The request is wrong. `param` names the field; the message says what would be right."""

    status = 400
    kind = "invalid_request_error"


class QueueFull(RequestError):
    """Too many requests wait. `retry_after_s` is what the Retry-After header says."""

    status = 503
    kind = "overloaded_error"
    retry_after_s = 1


class Unavailable(RequestError):
    """The engine is starting, draining, or was lost and is being restarted."""

    status = 503
    kind = "unavailable_error"
    retry_after_s = 2


class Aborted(RequestError):
    """The request was ended by /abort_request before it finished."""

    status = 499
    kind = "aborted_error"
