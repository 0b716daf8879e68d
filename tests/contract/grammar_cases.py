"""Grammars and outputs that every engine is tried with."""

import itertools

# Every string that these are tried with is also given to re.fullmatch.
REGEXES = (
    r"a|ab",  # an automaton that stops at the first match loses "ab"
    r"(New|New York|New York City)",
    r"[0-9]+(\.[0-9]+)?",
    r"(a|ab)(c|bcd)",
    r"(\.[a-c]+){1,3}",
    r"(ab)+",
    r"(ab|c)*",
    r"a??b",
    r"(a*)*b?",
    r"(abc|ab|a)+",
    r"a{0}",
    r"(|a)b",
    r"[^a]c?",
    r"\d[a-c]",
    r"é|e",
    r"(é|日)+b?",
    r"[à-ü]{1,2}",
    r"[^\x00-\x7f]",
    r"\x61",
    r"a{2,}",
    r"(?:a|b){2}(c{1,2})?",
    r"a+?b",
    r"\.",
    r"[a\-c]+",
    r"[.]{0,2}a",
    r"(a(b(c)?)?)?",
    r"(a|b)*abb",
    r"((a|b)(c|a))*",
    r"a?a?a?aaa",
    r"(aa|aaa)*",
    r"(a|aa){2}",
    r"[abc]{2,3}",
    r"[^abc]",
    r"(ab?c?)+",
    r"(a|b|ab)*c",
    r"a(b|bc)?c?",
    r"(b|)a(b|)",
    r"(a{1,2}){2}",
    r"(a|b)?(a|b)?",
    r"ba*|ab*",
    r"c+b*a?",
    r"(cab|ca|c)b?",
    r"\[a\]|\{b\}",
    r"(true|false|null)",
    r"true|tr",
    r"1?[0-9]|20",
    r"-?(0|[1-9][0-9]*)",
    r"((ab){2}|a)b",
    r"(a.)?b",
    r".{2}",
    r"[a-c].[a-c]",
    r"aé?b",
    r"(ab|ab)c?",
    r"a(|b|c)a",
    r"(a+b+)+",
    r"(a*b*)*c",
    r"a{1,3}b{0,1}",
    r"(日)?é{0,2}",
    r"🙂|a",
    r"(abc)*ab",
)
STRINGS = (
    "",
    *("".join(s) for n in range(1, 5) for s in itertools.product("abc.", repeat=n)),
    *("1", "12", "1.5", "12.25", "1.", "19", "20", "-1", "-0", "01", "3.14", "ab1", "1a", "AB"),
    *("New", "New York", "New York City", "New York ", "York", "NewYork", "é", "e", "éé", "aé"),
    *("日", "日b", "é日b", "ü", "üü", "àé", "🙂", "🙂a", "aéb", "日éé", "[a]", "{b}", "[", "aé."),
    *("true", "tr", "false", "null", "truefalse", "aaaaa", "aaaaaa", "aaaaaaa", "abcab", "abcabc"),
    *("ababb", "aabbab", ".a.b", ".a.b.c", ".a.b.c.a", "ababab", "cabb", "abbcc"),
)

OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
# Schema, values that it allows, values that it does not.
SCHEMAS = (
    (
        OBJECT,
        [{"name": "New", "age": 12}, {"name": "", "age": 0}, {"name": "é日🙂", "age": 120}],
        [{"name": "New"}, {"name": "York City", "age": 1}, {"name": "a", "age": -1}, [], "name"],
    ),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        [[True], [False, True]],
        [[], [True, True, True], [1], True],
    ),
    ({"enum": ["New", "New York", 12, None]}, ["New", "New York", 12, None], ["York", 1, True]),
    ({"const": {"order": [1, 2]}}, [{"order": [1, 2]}], [{"order": [1]}, {}]),
    (
        {"anyOf": [{"type": "integer"}, {"type": "null"}, {"type": "string", "maxLength": 2}]},
        [1, -20, None, "ab"],
        [1.5, "abc", []],
    ),
    ({"type": "string", "pattern": "^(a|ab)[0-9]{2}$"}, ["a12", "ab20"], ["a1", "b12", "xa12"]),
    (
        {
            "type": "object",
            "properties": {"orderId": {"type": "integer"}, "orderName": {"type": "null"}},
            "required": ["orderId", "orderName"],
            "additionalProperties": False,
        },
        [{"orderId": 12, "orderName": None}],
        [{"orderId": None, "orderName": None}, {"orderName": None}],
    ),
)
NESTED = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"enum": ["a", "b"]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["name", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}

# Grammar, outputs that it allows, outputs that it does not.
EBNF = (
    ('root ::= "a" | "ab" | "abc"', ["a", "ab", "abc"], ["b", "abca", ""]),
    ('root ::= word "x"\nword ::= [a-z]+', ["ax", "xx", "abcxx"], ["x", "a", "ax1"]),
    (
        'root ::= item ("," item)* # a list\nitem ::= "New"\n  | "York"\n  | [0-9]{2,3}',
        ["New", "New,York,12", "123"],
        ["New,", "1", ",New", "1234"],
    ),
    (r'root ::= [^"\\\n] "\u00e9\x41\t" . "é"?', ["aéA\t\n", "日éA\tzé"], ['"éA\ta', "aéA\t"]),
    (
        'root ::= "(" root ")" | [a-z]+ "x" | "ab" "c"',
        ["abx", "((xx))", "(abc)", "abcx"],
        ["(abx", "abx)", "()", "(ab)"],
    ),
    (
        'root ::= sum\nsum ::= sum "+" num | num\nnum ::= "-"? [0-9]+ ("." [0-9]+)?',
        ["1", "1+2+3", "-12.5+0"],
        ["1+", "+1", "1.+2"],
    ),
)
LARK = (('start: "ab" NUM\nNUM: /[0-9]+/', ["ab1", "ab12"], ["ab", "a1"]),)
CHOICES = (
    (["New", "New York", "New York City"], ["Ne", "New ", "York"]),
    (["a", "b\n", '"é"', "日/本", "{{}}"], ["", "ab", "b", "é"]),
)

# Kind, text, and the code of the error that it must be.
HOSTILE = [
    ("regex", r"[^\s\S]", "invalid_grammar"),
    ("regex", "[a-z", "invalid_grammar"),
    ("regex", "(?=a)b", "invalid_grammar"),
    ("regex", r"(a)\1", "invalid_grammar"),
    ("regex", "a{2000000}", "grammar_too_large"),
    ("regex", "(" * 300 + "a" + ")" * 300, "grammar_too_large"),
    ("json_schema", '{"type": "stsring"}', "invalid_grammar"),
    ("json_schema", '{"type": "string", "pattern": "^[a-z$"}', "invalid_grammar"),
    ("json_schema", '{"type": "string", "pattern": "(?=a)b"}', "unsupported_schema"),
    ("json_schema", '{"not": {"type": "string"}}', "unsupported_schema"),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "unsupported_schema"),
    ("json_schema", '{"type": "string", "format": "no-such"}', "unsupported_schema"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "invalid_grammar"),
    ("json_schema", '{"$ref": "#"}', "invalid_grammar"),
    ("json_schema", '{"$ref": "#/$defs/none"}', "invalid_grammar"),
    ("json_schema", "false", "invalid_grammar"),
    ("json_schema", '{"a": ' * 2000, "grammar_too_large"),
    ("choice", '["a", "a"]', "invalid_grammar"),
    ("ebnf", "root ::= root", "invalid_grammar"),
    ("ebnf", "root ::= other", "invalid_grammar"),
    ("ebnf", "root ::= (((", "invalid_grammar"),
    ("lark", "start: <[5]>", "invalid_grammar"),
    ("lark", "start: other", "invalid_grammar"),
]
