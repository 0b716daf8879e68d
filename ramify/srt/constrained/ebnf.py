r"""The `root ::= ...` grammars of GBNF and its relatives, written as llguidance's lark.

    rule  name ::= alternatives, up to the next `name ::=`      "text"  [a-z]  [^"\\]  .  ( )  |
    # starts a comment                                          * + ? {n} {n,} {n,m}

A lark lexeme takes the longest match and never gives back: `/[a-z]+/ "x"` matches no "abx". So

    no rule calls itself    every rule is a terminal and the whole grammar one lexeme: a regular
                            expression, exact and fast
    some rule does          every lexeme is one character, and there is nothing to give back: exact
                            too, but the parser goes through each character of each token
"""

import json
import re
from dataclasses import dataclass

from ramify.srt.constrained.limits import REPEAT, invalid, too_large

_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n]+|\#[^\n]*)
    |(?P<head>[A-Za-z_][\w.-]*[ \t\r\n]*::=)
    |(?P<name>[A-Za-z_][\w.-]*)
    |(?P<literal>"(?:\\.|[^"\\\n])*")
    |(?P<set>\[(?:\\.|[^\]\\\n])*\])
    |(?P<repeat>\{[ ]*\d+[ ]*(?:,[ ]*\d*[ ]*)?\})
    |(?P<mark>[|()*+?.])""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_NAMED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_ITSELF = "\"'\\[]-^/.?*+(){}|$"  # characters that a backslash may stand before for nothing


@dataclass(frozen=True)
class Token:
    """A piece of a rule: its kind in `_TOKEN`, its text, and the line that it is on."""

    kind: str
    text: str
    line: int


def to_lark(text: str) -> str:
    """The grammar in lark. Raises GrammarError naming the line."""
    rules = _rules(_tokens(text))
    used = _reachable(rules)
    recursive = _calls_itself({name: _calls(rules[name]) for name in used})
    names = {name: f"{'r' if recursive else 'T'}{i}" for i, name in enumerate(used)}
    lines = [f"{names[name]}: {_body(rules[name], names, recursive)}" for name in used]
    return "\n".join([f"start: {names['root']}", *lines])


def without_dots(text: str) -> str:
    """The grammar, checked as `to_lark` checks it, for an engine whose dialect has no dot."""
    to_lark(text)
    words = (r"[\u0000-\U0010ffff]" if token.text == "." else token.text for token in _tokens(text))
    return " ".join(word if "::=" not in word else f"\n{word}" for word in words)


def _tokens(text: str) -> list[Token]:
    found = []
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise invalid(f"line {line}: {text[at : at + 12]!r} is not understood")
        kind = match.lastgroup or ""
        if kind != "skip":
            found.append(Token(kind, match[0], line))
        line += match[0].count("\n")
        at = match.end()
    return found


def _rules(tokens: list[Token]) -> dict[str, list[Token]]:
    rules: dict[str, list[Token]] = {}
    body: list[Token] | None = None
    for token in tokens:
        if token.kind == "head":
            name = token.text.removesuffix("::=").strip()
            if name in rules:
                raise invalid(f"line {token.line}: rule {name} is defined twice")
            body = rules[name] = []
        elif body is None:
            raise invalid(f"line {token.line}: a grammar starts with a rule, name ::= ...")
        else:
            body.append(token)
    return rules


def _calls(body: list[Token]) -> list[str]:
    return list(dict.fromkeys(token.text for token in body if token.kind == "name"))


def _reachable(rules: dict[str, list[Token]]) -> list[str]:
    """The rules that root needs, root first. Raises GrammarError for one that does not exist."""
    if "root" not in rules:
        raise invalid("there is no rule named root")
    seen = {"root": None}
    todo = ["root"]
    while todo:
        for token in rules[todo.pop()]:
            if token.kind != "name" or token.text in seen:
                continue
            if token.text not in rules:
                raise invalid(f"line {token.line}: rule {token.text} is not defined")
            seen[token.text] = None
            todo.append(token.text)
    return list(seen)


def _calls_itself(calls: dict[str, list[str]]) -> bool:
    """Whether some rule needs itself: taking out rules that need no other leaves some."""
    left = dict(calls)
    while left:
        free = [name for name, needs in left.items() if not any(need in left for need in needs)]
        if not free:
            return True
        for name in free:
            del left[name]
    return False


def _body(body: list[Token], names: dict[str, str], by_character: bool) -> str:
    """One rule's right side in lark. Raises GrammarError where brackets or repeats do not fit."""
    out: list[str] = []
    depth = 0
    atom = False  # whether something stands before that may be repeated, or that ends a branch
    for token in body:
        opens, closes = token.text == "(", token.text == ")"
        if token.kind == "repeat" or token.text in ("*", "+", "?"):
            if not atom:
                raise invalid(f"line {token.line}: {token.text} has nothing to repeat")
            out[-1] = f"({out[-1]})" if out[-1][-1] in "*+?}" else out[-1]
            out[-1] += _repeat(token) if token.kind == "repeat" else token.text
            continue
        if token.kind == "mark" and token.text in "|)" and not atom:
            out.append('""')
        depth += opens - closes
        if depth < 0:
            raise invalid(f"line {token.line}: ) closes nothing")
        out.append(_atom(token, names, by_character))
        atom = not (token.kind == "mark" and token.text in "|(")
        if closes:
            _close_group(out)
    if depth:
        raise invalid(f"line {body[-1].line}: ( is not closed")
    return " ".join(out if atom else [*out, '""'])


def _close_group(out: list[str]) -> None:
    """Make one item of everything from the last lone ( on."""
    start = len(out) - 1 - out[::-1].index("(")
    out[start:] = [" ".join(out[start:])]


def _atom(token: Token, names: dict[str, str], by_character: bool) -> str:
    if token.kind == "name":
        return names[token.text]
    if token.kind == "literal":
        return _literal(token, by_character)
    if token.kind == "set":
        return f"/{_set(token)}/"
    return r"/[\s\S]/" if token.text == "." else token.text


def _literal(token: Token, by_character: bool) -> str:
    text = "".join(character for character, _ in _characters(token))
    if not by_character or len(text) < 2:
        return json.dumps(text, ensure_ascii=False)
    return "(" + " ".join(json.dumps(character, ensure_ascii=False) for character in text) + ")"


def _set(token: Token) -> str:
    r"""[a-z] as a regular expression of code points: what is special there does not matter."""
    members = _characters(token)
    negated = members[:1] == [("^", False)]
    members = members[1:] if negated else members
    if not members:
        raise invalid(f"line {token.line}: {token.text} is empty")
    ranges = []
    while members:
        low = members.pop(0)[0]
        high = low
        if len(members) > 1 and members[0] == ("-", False):
            high = members[1][0]
            del members[:2]
        if high < low:
            raise invalid(f"line {token.line}: {low}-{high} in {token.text} is the wrong way round")
        ranges.append(f"\\x{{{ord(low):x}}}-\\x{{{ord(high):x}}}")
    return f"[{'^' if negated else ''}{''.join(ranges)}]"


def _characters(token: Token) -> list[tuple[str, bool]]:
    """The characters between the quotes or brackets, and whether each was escaped."""
    inside = token.text[1:-1]
    found = []
    at = 0
    while at < len(inside):
        match = _ESCAPE.match(inside, at)
        found.append((inside[at] if match is None else _unescape(match, token), match is not None))
        at = at + 1 if match is None else match.end()
    return found


def _unescape(match: re.Match[str], token: Token) -> str:
    code = match[1] or match[2] or match[3]
    if code is None:
        named = _NAMED.get(match[4], match[4] if match[4] in _ITSELF else None)
        if named is None:
            raise invalid(f"line {token.line}: {match[0]} is no escape")
        return named
    value = int(code, 16)
    if value > 0x10FFFF or 0xD800 <= value <= 0xDFFF:
        raise invalid(f"line {token.line}: {match[0]} is no character")
    return chr(value)


def _repeat(token: Token) -> str:
    bounds = token.text.strip("{}").replace(" ", "").split(",")
    if any(len(bound) > 7 or int(bound or 0) > REPEAT for bound in bounds):
        raise too_large(f"line {token.line}: a repeat is over {REPEAT}")
    if len(bounds) == 2 and bounds[1] and int(bounds[1]) < int(bounds[0]):
        raise invalid(f"line {token.line}: {token.text} ends before it begins")
    return "{" + ",".join(bounds) + "}"
