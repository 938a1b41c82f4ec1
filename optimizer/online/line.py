"""Who waits, and who is next: by a key, by shares of tenants, and by a plan before both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, nsmallest
from operator import attrgetter
from typing import Protocol

from optimizer.online.state import WAITING, Entry


class Line(Protocol):
    """Waiting requests in the order of a rule."""

    def push(self, entry: Entry) -> None:
        """Take in a request, whose key is set."""

    def head(self) -> Entry | None:
        """Show who is next."""

    def gone(self, entry: Entry) -> None:
        """Learn that a request waits no more."""

    def first(self, most: int) -> list[Entry]:
        """Give who is next, and then, up to so many."""


class KeyLine:
    """Smallest key first, ties by submission. Who has left it is passed over when it comes up.

    Parameters
    ----------
    key
        Attribute of the entries.

    Examples
    --------
    >>> from optimizer.online.messages import Request
    >>> line = KeyLine()
    >>> for serial, key in enumerate((3.0, 1.0, 2.0)):
    ...     entry = Entry(Request(str(serial), 1), serial, 0, 0.0, 1)
    ...     entry.key = key
    ...     line.push(entry)
    >>> [entry.request.id for entry in line.first(2)]
    ['1', '2']
    """

    __slots__ = ("_entries", "_heap", "_key")

    def __init__(self, key: str = "key") -> None:
        self._heap: list[tuple[float, int]] = []
        self._entries: dict[int, Entry] = {}
        self._key: Callable[[Entry], float] = attrgetter(key)

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: Entry) -> None:
        """Take in a request."""
        self._entries[entry.serial] = entry
        heappush(self._heap, (self._key(entry), entry.serial))

    def head(self) -> Entry | None:
        """Show who is next."""
        heap, entries = self._heap, self._entries
        while heap:
            key, serial = heap[0]
            entry = entries.get(serial)
            if entry is not None and self._key(entry) == key:
                return entry
            heappop(heap)
        return None

    def gone(self, entry: Entry) -> None:
        """Learn that a request waits no more."""
        if self._entries.pop(entry.serial, None) is not None and len(self._heap) > 64 + 2 * len(
            self._entries
        ):
            self._heap = [(self._key(e), serial) for serial, e in self._entries.items()]
            heapify(self._heap)

    def first(self, most: int) -> list[Entry]:
        """Give who is next, and then: down the heap, best first."""
        heap, entries = self._heap, self._entries
        found: list[Entry] = []
        edge = [(heap[0], 0)] if heap else []
        while edge and len(found) < most:
            (key, serial), place = heappop(edge)
            entry = entries.get(serial)
            if entry is not None and self._key(entry) == key and (not found or found[-1] is not entry):
                found.append(entry)
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heappush(edge, (heap[child], child))
        return found


class ShareLine:
    """The tenant that was served least goes first, its own requests by key (VTC: Sheng et al., OSDI 2024).

    A tenant that comes back is lifted to the least served of those that wait, or to the one that left last, so that
    nobody saves up.
    """

    _most = 4096

    def __init__(self) -> None:
        self._lines: dict[str, KeyLine] = {}
        self._served: dict[str, float] = {}
        self._floor = 0.0
        self._heap: list[tuple[float, str]] = []
        """Of (served, tenant): what is out of date is passed over when it comes up."""

    def push(self, entry: Entry) -> None:
        """Take in a request."""
        tenant = entry.request.tenant
        line = self._lines.get(tenant)
        if line is None:
            first = self._least()
            least = self._floor if first is None else self._served[first]
            self._served[tenant] = max(self._served.get(tenant, 0.0), least)
            line = self._lines[tenant] = KeyLine()
            self._rank(tenant)
        line.push(entry)

    def _least(self) -> str | None:
        """Give the tenant that was served least, of those that wait."""
        heap = self._heap
        while heap:
            served, tenant = heap[0]
            if tenant in self._lines and self._served[tenant] == served:
                return tenant
            heappop(heap)
        return None

    def _rank(self, tenant: str) -> None:
        """Put a tenant that waits in its place."""
        heappush(self._heap, (self._served[tenant], tenant))
        if len(self._heap) > 64 + 2 * len(self._lines):
            self._heap = [(self._served[t], t) for t in self._lines]
            heapify(self._heap)

    def head(self) -> Entry | None:
        """Show who is next."""
        tenant = self._least()
        return None if tenant is None else self._lines[tenant].head()

    def gone(self, entry: Entry) -> None:
        """Learn that a request waits no more."""
        line = self._lines.get(entry.request.tenant)
        if line is None:
            return
        line.gone(entry)
        if not len(line):
            del self._lines[entry.request.tenant]
            self._floor = self._served[entry.request.tenant]

    def first(self, most: int) -> list[Entry]:
        """Give the next of each tenant in turn."""
        tenants = nsmallest(most, self._lines, key=self._served.__getitem__)
        turns = [self._lines[tenant].first(most) for tenant in tenants]
        found = [row[i] for i in range(max(map(len, turns), default=0)) for row in turns if i < len(row)]
        return found[:most]

    def charge(self, tenant: str, work: float) -> None:
        """Count what a tenant was given, or (below 0) what it was charged too much."""
        self._served[tenant] = self._served.get(tenant, self._floor) + work
        if tenant in self._lines:
            self._rank(tenant)
        if len(self._served) > self._most + len(self._lines):
            self._served = {t: self._served[t] for t in {*self._lines, tenant}}


class DueLine(KeyLine):
    """Smallest key first; and beside, who has a first token due, by when.

    Examples
    --------
    >>> from optimizer.online.messages import Request
    >>> line = DueLine()
    >>> for serial, due_s in enumerate((3.0, 1.0, 2.0)):
    ...     entry = Entry(Request(str(serial), 1), serial, 0, 0.0, 1)
    ...     entry.due_s = due_s
    ...     line.push(entry)
    >>> [entry.due_s for entry in line.due(now_s=1.5, most=9)]
    [2.0, 3.0]
    """

    __slots__ = ("_due",)

    def __init__(self) -> None:
        super().__init__()
        self._due = KeyLine("due_s")

    def push(self, entry: Entry) -> None:
        """Take in a request; who was thrown out has had its first token."""
        super().push(entry)
        if entry.known == entry.request.prompt_tokens:
            self._due.push(entry)

    def gone(self, entry: Entry) -> None:
        """Learn that a request waits no more."""
        super().gone(entry)
        self._due.gone(entry)

    def due(self, now_s: float, most: int) -> list[Entry]:
        """Give those whose due time is to come, the first of them, in order; those it has passed are not asked again."""
        while (entry := self._due.head()) is not None and entry.due_s <= now_s:
            self._due.gone(entry)
        return self._due.first(most)


class Order:
    """A line with a plan before it.

    A request that the plan does not know goes before the plan's next one if its key is smaller: it came after the
    plan was made, and would else wait for the next plan.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self._plan: list[Entry] = []
        self._planned: set[int] = set()

    def adopt(self, entries: list[Entry]) -> None:
        """Take a plan: who goes first, and then."""
        self._plan = entries[::-1]
        self._planned = {entry.serial for entry in entries}

    def drop(self) -> None:
        """Forget the plan."""
        self._plan = []
        self._planned = set()

    def head(self) -> Entry | None:
        """Show who is next."""
        plan = self._plan
        while plan and plan[-1].phase != WAITING:
            plan.pop()
        first = self.line.head()
        if not plan:
            return first
        planned = plan[-1]
        if first is None or first.serial in self._planned or first.key >= planned.key:
            return planned
        return first

    def __iter__(self) -> Iterator[Entry]:
        """Go through what is left of the plan."""
        return (entry for entry in reversed(self._plan) if entry.phase == WAITING)
