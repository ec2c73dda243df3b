"""Workers as the coordinator sees them: who has room, what happened, and who takes the place of the dead."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

from engine.errors import UserError
from engine.workers.events import Done, Event, Failed, Left, Lost, Ready, Unable

FIRST_DEATHS, LATER_DEATHS = 3, 20
"""Workers in a row that may end while they load, before one ever has loaded and once one has."""


class Member(ABC):
    """One worker, wherever it runs."""

    def __init__(self, name: str, depth: int) -> None:
        self.name, self.depth = name, depth
        self.ready = False
        self.leaving = False
        """Gets no more shards, and ends once it has none."""
        self.under_way: list[int] = []

    @property
    def room(self) -> int:
        """How many shards it can be given."""
        return self.depth - len(self.under_way) if self.ready and not self.leaving else 0

    @abstractmethod
    def send(self, number: int) -> None:
        """One more shard to make."""

    @abstractmethod
    def dismiss(self) -> None:
        """Lets it end after the shards that it has."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once; what it was making is lost."""


M = TypeVar("M", bound=Member)


class Crew(ABC, Generic[M]):
    """Workers whose number follows `resize`; `wait` puts new ones in the places of the dead.

    Leaving the context ends all of them at once, those that work, too.
    """

    def __init__(self) -> None:
        self.members: list[M] = []
        self._has_loaded = False
        self._deaths_at_start = 0
        self._started = 0

    def __enter__(self) -> "Crew[M]":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()
        self.members = []

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Workers that there is a place for; it may change."""

    @abstractmethod
    def start(self, name: str) -> M:
        """A new worker, which will say that it is ready."""

    @abstractmethod
    def collect(self, seconds: float) -> Iterable[tuple[M, Event]]:
        """What happened, as soon as something has or after `seconds`."""

    def resize(self, size: int) -> None:
        """Starts, or dismisses, as many workers as it takes to have `size`."""
        staying = [member for member in self.members if not member.leaving]
        for _ in range(size - len(staying)):
            self._started += 1
            self.members.append(self.start(f"worker {self._started}"))
        idle_first = sorted(staying, key=lambda member: (len(member.under_way), member.ready))
        for member in idle_first[: max(0, len(staying) - size)]:
            member.leaving = True
            member.dismiss()

    @property
    def freest(self) -> M | None:
        """The member with the fewest shards of those that have room for another; None where none has."""
        free = [member for member in self.members if member.room > 0]
        return min(free, key=lambda member: len(member.under_way), default=None)

    def give(self, member: M, number: int) -> None:
        """One more shard to make."""
        member.under_way.append(number)
        member.send(number)

    def wait(self, seconds: float) -> list[Event]:
        """What happened within `seconds`, which is waited for only where nothing has.

        Raises UserError where no worker can load its networks.
        """
        events = []
        for member, event in self.collect(seconds):
            if member in self.members:
                self._take(member, event)
                events.append(event)
        return events

    def _take(self, member: M, event: Event) -> None:
        match event.what:
            case Ready():
                member.ready, self._has_loaded = True, True
                self._deaths_at_start = 0
            case Done(number=number) | Failed(number=number):
                member.under_way.remove(number)
            case Left():
                self.members.remove(member)
            case Lost(reason=reason):
                self.members.remove(member)
                self._count_death(member, reason)
            case Unable(reason=reason):
                self.members.remove(member)
                member.kill()
                if not self._has_loaded:
                    raise UserError(reason)
                self._count_death(member, reason)

    def _count_death(self, member: M, reason: str) -> None:
        if member.ready:
            return
        self._deaths_at_start += 1
        if self._deaths_at_start >= (LATER_DEATHS if self._has_loaded else FIRST_DEATHS):
            raise UserError(
                f"{self._deaths_at_start} workers in a row ended while they loaded their networks (the last:"
                f" {reason}); take fewer --workers, or see to the machine's memory, and go on with --resume"
            )
