"""Checks of single values that a client sent. Each raises InvalidRequest naming the field. Pure."""

from ramify.srt.errors import InvalidRequest

MAX_DURATION_S = 86_400.0  # of a request's timeout and of a pin


def check_int(name: str, value: int, low: int, high: int) -> None:
    """An integer within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise invalid(name, f"takes an integer from {low} to {high}, got {value!r:.40}")


def check_bool(name: str, value: object) -> None:
    """True or False, and no number."""
    if type(value) is not bool:
        raise invalid(name, "must be true or false")


def check_short(name: str, text: object, most: int) -> None:
    """A text of at most so many characters."""
    if not isinstance(text, str) or len(text) > most:
        raise invalid(name, f"must be a text of at most {most} characters")
    check_unicode(name, text)


def check_duration(name: str, seconds: float) -> None:
    """Seconds that a request or a pin may last."""
    if type(seconds) not in (int, float) or not 0 < seconds <= MAX_DURATION_S:
        right = f"takes seconds, more than 0 and at most {MAX_DURATION_S:g}"
        raise invalid(name, f"{right}, got {seconds!r:.40}")


def check_unicode(name: str, text: str) -> None:
    """A text that UTF-8 can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(name, "must be valid Unicode: it holds half of a surrogate pair") from error


def invalid(name: str, what: str, code: str = "invalid_value") -> InvalidRequest:
    """The error about a field: `name what`."""
    return InvalidRequest(f"{name} {what}", param=name, code=code)
