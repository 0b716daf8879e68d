"""How `root ::= ...` becomes lark. What the languages are is tested with the engines."""

import pytest

from ramify.srt.constrained import ebnf
from ramify.srt.constrained.base import GrammarError


def test_without_recursion_every_rule_is_a_terminal():
    """One lexeme: a rule's longest match must not eat what comes behind it."""
    lark = ebnf.to_lark('root ::= word "x" # ends\nword ::= [a-c]+\nunused ::= "u"')
    assert lark.split("\n") == ["start: T0", 'T0: T1 "x"', r"T1: /[\x{61}-\x{63}]/+"]


def test_with_recursion_every_lexeme_is_one_character():
    lark = ebnf.to_lark('root ::= "(" root ")" | "abc"+')
    assert lark.split("\n") == ["start: r0", 'r0: "(" r0 ")" | ("a" "b" "c")+']


def test_rules_may_go_over_lines_and_branches_may_be_empty():
    lark = ebnf.to_lark('root ::=\n  "a"\n  | ( | "b"){2,3}\n\n  # no more\n')
    assert lark.split("\n")[1] == 'T0: "a" | ( "" | "b" ){2,3}'


def test_sets_and_escapes():
    lark = ebnf.to_lark(r'root ::= [^\]\-a-] [\u00e9-\U0001F642] "\x41\"\n" .')
    assert lark.split("\n")[1] == (
        r"T0: /[^\x{5d}-\x{5d}\x{2d}-\x{2d}\x{61}-\x{61}\x{2d}-\x{2d}]/ "
        r'/[\x{e9}-\x{1f642}]/ "A\"\n" /[\s\S]/'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a ::= "a"', "no rule named root"),
        ('root ::= "a"\n\nb', "rule b is not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2: rule root is defined twice"),
        ('"a"', "starts with a rule"),
        ("root ::= %", "line 1: '%' is not understood"),
        ('root ::= "a', "line 1"),
        ("root ::= * [a]", "nothing to repeat"),
        ('root ::= ("a"', "( is not closed"),
        ('root ::= "a")', ") closes nothing"),
        ("root ::= []", "is empty"),
        ("root ::= [b-a]", "wrong way round"),
        (r'root ::= "\d"', "is no escape"),
        (r'root ::= "\ud800"', "is no character"),
        ('root ::= "a"{3,2}', "ends before it begins"),
        ('root ::= "a"{9999999}', "a repeat is over"),
    ],
)
def test_mistakes_are_named_with_their_line(text, message):
    with pytest.raises(GrammarError) as caught:
        ebnf.to_lark(text)
    assert message in caught.value.message
