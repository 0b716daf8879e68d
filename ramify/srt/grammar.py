"""What an output must look like, one value from the edge to the matcher, and why it cannot."""

from typing import Literal

import msgspec

Kind = Literal["regex", "json_schema", "ebnf", "lark", "choice", "structural_tag"]


class GrammarSpec(msgspec.Struct, frozen=True):
    """A constraint on a request's output.

    `text` is a regular expression, a JSON schema, a grammar, a JSON list of strings (`choice`), or
    a JSON structural tag. With `strict`, what a schema asks and the backend cannot enforce is
    refused; without, it is let go and named. `param` is the client's name of the field that it
    came in, for errors.
    """

    kind: Kind
    text: str
    strict: bool = True
    param: str = ""


class GrammarError(Exception):
    """A grammar cannot be used.

    `code` is invalid_grammar, unsupported_schema, grammar_too_large or grammar_timeout. The message
    names the keyword or position, and holds nothing of an engine's insides.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
