"""Texts that each pattern of the language takes, and texts that it does not."""

from ramify.lang.regexes import DATE, EMAIL, FLOAT, INTEGER, IPV4, URL, UUID

PATTERNS = {
    INTEGER: ("0 -1 42 9007199254740993", "01 -01 +1 1.0 - 1e3 ١ 1_000"),
    FLOAT: ("0 -0.5 3.14 1e9 1.5E-3 -2 0.0 1e+05", ".5 5. 01.5 +1 1e e5 1.5.2 NaN - 1,5"),
    IPV4: (
        "0.0.0.0 255.255.255.255 192.168.1.1 10.0.0.249 199.99.9.200",
        "256.1.1.1 1.1.1 1.1.1.1.1 01.1.1.1 1.1.1.300 1.1.1. a.b.c.d 1..1.1 ::1 1.1.1.1/8",
    ),
    DATE: (
        "2024-02-29 2000-02-29 1999-12-31 2023-04-30 0400-02-29 2026-01-01",
        "2023-02-29 1900-02-29 2100-02-29 2024-04-31 2024-13-01 2024-00-10 2024-1-1 24-01-01 "
        "2024-06-00 2024-11-31 2024/01/01 2024-01-32 20240101",
    ),
    EMAIL: (
        "a@b.io first.last@example.co.uk x+y_z%1-w@a-b.museum A1@9.de",
        "@b.io a@ a@b a@b.c .a@b.io a.@b.io a..b@c.de a@-b.io a@b-.io a@b..io a@@b.io a@b.i0 a@.io",
    ),
    URL: (
        "http://a.io https://a.b-c.co.uk/ https://x.org:8080/a/b.html?q=1&r=%20#top "
        "http://a.io?x=y?z https://a.io/~me/(x) http://a.io:65535",
        "ftp://a.io http:/a.io http://a http://-a.io http://a.io:0 http://a.io:65536 "
        "http://a.io:99999 http://a.io/<x> a.io //a.io http://a.io/é javascript:alert(1)",
    ),
    UUID: (
        "123e4567-e89b-12d3-a456-426614174000 FFFFFFFF-0000-0000-0000-00000000ffff",
        "123e4567e89b12d3a456426614174000 123e4567-e89b-12d3-a456-42661417400 "
        "g23e4567-e89b-12d3-a456-426614174000",
    ),
}
NAMES = ["INTEGER", "FLOAT", "IPV4", "DATE", "EMAIL", "URL", "UUID"]
