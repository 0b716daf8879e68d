"""Accounts share the engine: of those who wait, the one that has been served least goes first.

Each account has a counter of tokens computed and generated for it; cached ones cost nothing, and
those of an answer count twice, as they are drawn and then computed. The method is that of virtual
token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024):

    a  =============== 700         waits
    b  ============= 650           waits, served least: it goes next
    c  ==== 200 ~~~~> 650          begins to wait, and is lifted to the least of those who wait: it
                                   is neither ahead for having been idle, nor behind for being new

Tokens are counted once they are computed, but one step admits many. So an admission counts its
prompt in advance, and what is computed then is taken from the advance first.

The bound: let two accounts wait all the time. Whoever is admitted had the smaller counter; until
its next admission only what it has running is counted. So the counters never differ by more than
one prompt and the answers that one account has running at once. The next request of an account
hence waits, at most, until every other account that waits was served so much more than its own.
Inside an account the policy and `aging` decide.
"""

from collections import OrderedDict

from ramify.srt.scheduling.lazy_heap import LazyHeap

ACCOUNTS_REMEMBERED = 4096  # of those that wait for nothing


class Account:
    """One account. `number`: in order of its first request, which breaks ties."""

    __slots__ = ("advance", "counter", "in_line", "late", "name", "number")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.counter = 0
        self.advance = 0  # tokens that are counted, but not computed yet
        self.in_line = False  # somebody is in the order
        self.late = False  # somebody must go next by age, in the order or not


class Shares:
    """The counters of all accounts, and whose turn it is.

    An account waits while any of its requests does. It can go while one of them is in line or late:
    the others are parked. Those who wait for nothing and left longest ago are forgotten; when they
    come back, the lift gives them a counter again.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Account] = {}
        self._idle: OrderedDict[str, Account] = OrderedDict()  # the one that left last at the end
        self._left_last: Account | None = None
        self._arrivals = 0
        self._all: LazyHeap[Account] = LazyHeap(_counter)  # those who wait
        self._able: LazyHeap[Account] = LazyHeap(_counter)  # those of them that can go

    def counter(self, name: str) -> int:
        """What an account has been served, lifts and advances included."""
        return self._account(name).counter

    def turn(self) -> str | None:
        """The account that goes next; None if none can."""
        account = self._able.first()
        return None if account is None else account.name

    def begin(self, name: str) -> None:
        """The account waits for something from now on."""
        account = self._account(name)
        least = self._all.first() or self._left_last or account
        account.counter = max(account.counter, least.counter)
        del self._idle[name]
        self._waiting[name] = account
        self._all.put(account.number, account)

    def end(self, name: str) -> None:
        """The account waits for nothing any more."""
        account = self._waiting.pop(name)
        self._all.remove(account.number)
        self._rest(account)
        self._left_last = account

    def set_in_line(self, name: str, in_line: bool) -> None:
        """Note whether any request of the account is in the order."""
        account = self._account(name)
        account.in_line = in_line
        self._update(account)

    def set_late(self, name: str, late: bool) -> None:
        """Note whether any request of the account must go next by age."""
        account = self._account(name)
        if account.late != late:
            account.late = late
            self._update(account)

    def advance(self, name: str, n_tokens: int) -> None:
        """Count tokens that are going to be computed."""
        account = self._account(name)
        account.counter += n_tokens
        account.advance += n_tokens

    def charge(self, name: str, n_tokens: int) -> None:
        """Count tokens that were computed or generated."""
        account = self._waiting.get(name) or self._account(name)
        if account.advance:
            covered = min(n_tokens, account.advance)
            account.advance -= covered
            n_tokens -= covered
        account.counter += n_tokens

    def _account(self, name: str) -> Account:
        account = self._waiting.get(name) or self._idle.get(name)
        if account is None:
            self._arrivals += 1
            account = Account(name, self._arrivals)
            self._rest(account)
        return account

    def _rest(self, account: Account) -> None:
        self._idle[account.name] = account
        if len(self._idle) > ACCOUNTS_REMEMBERED:
            self._idle.popitem(last=False)

    def _update(self, account: Account) -> None:
        able = account.in_line or account.late
        if able and account.number not in self._able.items:
            self._able.put(account.number, account)
        elif not able and account.number in self._able.items:
            self._able.remove(account.number)


def _counter(account: Account) -> int:
    return account.counter
