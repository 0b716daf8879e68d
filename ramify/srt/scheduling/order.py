"""The order that a policy gives, kept up to date request by request; see `queue_policy`.

Adding, removing and re-keying a request costs its path and a logarithm, whatever else waits:

    root [7]  heap: branch a (-4), branch b (-2), request 9 (-1)
     |- a [4]  <- served last, so all of it goes before b, even when b has become heavier
     |   `- ...
     `- b [2]

Each account has a root of its own; `shares` says which of them goes next.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from ramify.srt.scheduling.lazy_heap import LazyHeap
from ramify.srt.scheduling.queue_policy import Policy
from ramify.srt.scheduling.request import Request
from ramify.srt.scheduling.shares import Shares

PROGRAMS_REMEMBERED = 4096


class Service:
    """Tokens computed and generated for each program.

    So that clients cannot fill the memory with names, those not served for longest are forgotten.
    """

    def __init__(self) -> None:
        self._tokens: OrderedDict[Hashable, int] = OrderedDict()

    def of(self, program: Hashable) -> int:
        return self._tokens.get(program, 0)

    def charge(self, program: Hashable, n_tokens: int) -> None:
        self._tokens[program] = self._tokens.pop(program, 0) + n_tokens
        if len(self._tokens) > PROGRAMS_REMEMBERED:
            self._tokens.popitem(last=False)


class Branch:
    """One fork of the tree: `items` are its requests and its children, smallest key first.

    `program`: the account and the program of a branch that goes by what the program was served.
    """

    __slots__ = ("children", "items", "name", "number", "parent", "program", "served", "size")

    def __init__(
        self,
        number: int,
        name: Hashable,
        parent: "Branch | None",
        key: "Callable[[Request | Branch], float]",
        program: Hashable = None,
    ) -> None:
        self.number = number  # of the request that made it
        self.name = name
        self.parent = parent
        self.program = program
        self.size = 0  # requests in it and below
        self.children: dict[Hashable, Branch] = {}
        self.items: LazyHeap[Request | Branch] = LazyHeap(key)
        self.served: Branch | None = None  # the child whose request went last


class Order:
    """Waiting requests: accounts by their shares, and inside each the order of one policy."""

    def __init__(self, policy: Policy, shares: Shares) -> None:
        self.service = Service()  # by account and program
        self._policy = policy
        self._shares = shares
        self._roots: dict[str, Branch] = {}  # by account
        self._branch_of: dict[int, Branch] = {}  # by the request's number

    def numbers(self) -> list[int]:
        """Those in line, in no particular order."""
        return list(self._branch_of)

    def __contains__(self, number: int) -> bool:
        return number in self._branch_of

    def add(self, request: Request) -> None:
        branch = self._root(request)
        branch.size += 1
        for name in self._policy.path(request):
            child = branch.children.get(name)
            if child is None:
                program = self._program(request) if branch.parent is None else None
                child = Branch(request.number, name, branch, self._key, program)
                branch.children[name] = child
            child.size += 1
            branch.items.put(child.number, child)
            branch = child
        branch.items.put(request.number, request)
        self._branch_of[request.number] = branch

    def rekey(self, request: Request) -> None:
        """Note that the request's key has changed."""
        self._branch_of[request.number].items.put(request.number, request)

    def remove(self, request: Request) -> None:
        branch = self._branch_of.pop(request.number)
        branch.items.remove(request.number)
        branch.size -= 1
        while (parent := branch.parent) is not None:
            if branch.size == 0:
                parent.items.remove(branch.number)
                del parent.children[branch.name]
                if parent.served is branch:
                    parent.served = None
            branch = parent
            branch.size -= 1
        if branch.size == 0:
            account = request.submit.account
            del self._roots[account]
            self._shares.set_in_line(account, False)

    def first(self) -> Request | None:
        """Who goes next; it stays in line. None if nobody waits here."""
        account = self._shares.turn()
        branch = None if account is None else self._roots.get(account)
        while branch is not None:
            at = branch.served or branch.items.first()
            if not isinstance(at, Branch):
                return at
            branch = at
        return None

    def went(self, request: Request) -> None:
        """Note that a request which is still in line is the next to go: its branch is begun."""
        self._shares.advance(request.submit.account, len(request.tokens) - request.hit)
        branch = self._branch_of[request.number]
        while (parent := branch.parent) is not None:
            parent.served = branch if branch.program is None else None
            branch = parent

    def charge(self, request: Request, n_tokens: int) -> None:
        """Count tokens that were computed or generated for a request, wherever it is now."""
        self._shares.charge(request.submit.account, n_tokens)
        if self._policy.fair:
            self.service.charge(self._program(request), n_tokens)

    def _root(self, request: Request) -> Branch:
        account = request.submit.account
        root = self._roots.get(account)
        if root is None:
            root = self._roots[account] = Branch(0, account, None, self._key)
            self._shares.set_in_line(account, True)
        return root

    def _key(self, item: Request | Branch) -> float:
        if isinstance(item, Request):
            return self._policy.key(item)
        return -item.size if item.program is None else self.service.of(item.program)

    def _program(self, request: Request) -> Hashable:
        """What is counted together, under a policy whose outermost branches are programs."""
        submit = request.submit
        return (submit.account, submit.program_id) if self._policy.fair else None
