"""The queue policies: each is a key and a path, both pure functions of one request.

Waiting requests stand in a tree of branches, most often just its root. At each fork the smallest
key goes first, ties to the older. A request's key is the policy's. A branch's key is minus the
number of requests in it, so the heaviest goes first, and once begun it is finished first: that is
depth first. Under a `fair` policy the outermost branches are programs: the one that has had the
least service goes first.

    lpm, fcfs, lof, priority, random        program
    root                                    root
     |- request                              |- program "a"   by service
     `- request                              |   |- trunk     by weight
    dfs-weight                               |   |   `- request
    root                                     |   `- request
     |- trunk  by weight                     `- program ""
     `- request

Whatever the policy, nobody is overtaken more often than the bound: see `aging`. All this is inside
an account; between accounts `shares` decides.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from zlib import crc32

from ramify.srt.scheduling.request import Request

Path = tuple[Hashable, ...]

TRUNK_LENGTHS = (16, 64, 256, 1024, 4096)  # where the tree of waiting prompts may fork, in tokens


def no_branch(request: Request) -> Path:
    """The root itself."""
    return ()


@dataclass(frozen=True, slots=True)
class Policy:
    """`by_hit`: the key depends on what is cached. `preempts`: see `admission.preempted`."""

    key: Callable[[Request], int]
    path: Callable[[Request], Path] = no_branch
    by_hit: bool = False
    fair: bool = False
    preempts: bool = False


def longest_hit(request: Request) -> int:
    """The longest cached prefix first."""
    return -request.hit


def arrival(request: Request) -> int:
    """First come, first served."""
    return request.number


def longest_output(request: Request) -> int:
    """The most tokens still to generate first: they decide when the batch is done."""
    return request.n_output - request.max_new_tokens


def priority(request: Request) -> int:
    """The largest priority first."""
    return -request.submit.priority


def shuffled(request: Request) -> int:
    """No order at all, but the same one in every run."""
    return int.from_bytes(blake2b(b"%d" % request.number, digest_size=6).digest(), "big")


def weight_one(request: Request) -> int:
    """A request beside branches is as light as a branch of one."""
    return -1


def trunk(request: Request) -> Path:
    """Names of the prompt's beginnings, the shortest first: equal for requests that share them.

    A name is a checksum over namespace and tokens. Two beginnings with the same one would merely
    be served side by side.
    """
    names: list[Hashable] = []
    name, start = crc32(request.submit.namespace.encode("utf-8", "surrogatepass")), 0
    for end in TRUNK_LENGTHS:
        if end > len(request.tokens):
            break
        name = crc32(request.tokens[start:end], name)
        names.append(name)
        start = end
    return tuple(names)


def program(request: Request) -> Path:
    """The program, then the trunk."""
    return (request.submit.program_id, *trunk(request))


POLICIES: Mapping[str, Policy] = {
    "lpm": Policy(longest_hit, by_hit=True),
    "fcfs": Policy(arrival),
    "dfs-weight": Policy(weight_one, trunk),
    "priority": Policy(priority, preempts=True),
    "lof": Policy(longest_output),
    "random": Policy(shuffled),
    "program": Policy(weight_one, program, fair=True),
}
