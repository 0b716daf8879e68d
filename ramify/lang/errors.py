"""What the language raises on purpose.

RuntimeError
|-- ProgramError     a variable or text could not be produced; `__cause__` is the original exception
`-- BackendError     the server answered with an error, or cannot be reached
KeyError
`-- UnknownVariable  no generation, scope or assignment of the program has this name
"""


class ProgramError(RuntimeError):
    """A read of something whose producer failed. The original exception is the cause."""


def original(error: Exception) -> Exception:
    """The exception behind a ProgramError; any other exception itself."""
    cause = error.__cause__
    return cause if isinstance(error, ProgramError) and isinstance(cause, Exception) else error


class BackendError(RuntimeError):
    """A server's error: its message, the field at fault, a code, and the HTTP status if any."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | int | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class UnknownVariable(KeyError):
    """No generation, scope or assignment of the program has this name."""
