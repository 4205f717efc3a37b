"""Pop items: how many to take off the queues, and whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from vertex_launch.codes import Code
from vertex_launch.dispatch import perform
from vertex_launch.dispatch.context import Notice, Pass
from vertex_launch.dispatch.look import Seen
from vertex_launch.errors import Message, Unavailable
from vertex_launch.limits import LARGEST_LEASE
from vertex_launch.model import Item

MOST_SINGLY = 8
"""Items that are popped one by one before the first of them is started."""

LEASE_SHARE = 4
"""Which part of a lease may pass before no further request for items is sent."""

MOST_UNREADABLE = 4
"""Requests to one queue whose answer cannot be read, after which it is left out of a pass."""


@dataclass
class Queues:
    """The queues that may still have items for this pass, the agent that asks, and whether the first request was sent.

    ``unreadable`` counts the answers of a queue that could not be read.
    """

    names: list[str]
    agent: str
    asked: bool = False
    unreadable: Counter[str] = field(default_factory=Counter)

    def lease(self, pass_: Pass, seen: Seen, want: int, status: str) -> list[Item]:
        """Lease up to ``want`` items, going round the queues; fewer if they are large, or the queues or the time end.

        The first request refreshes the agent's status. Raises Unavailable if that request fails.
        """
        leased: list[Item] = []
        began = pass_.now
        if not self.asked:
            self.names = [name for name in self.names if not _is_for_others(pass_, seen, name)]
        while self.names and pass_.in_time and want > len(leased):
            if leased and pass_.now - began > pass_.settings.lease / LEASE_SHARE:
                break  # these need the rest of their lease
            leased += self._pop(pass_, seen, want - len(leased), status)
            if leased and _singly(pass_):
                break  # these must not wait for the requests of others
            if sum(item.size for item in leased) > LARGEST_LEASE:
                break  # these have to leave the memory first
        return leased

    def _pop(self, pass_: Pass, seen: Seen, want: int, status: str) -> list[Item]:
        """Send one request; a queue that gives nothing is not asked again in this pass."""
        turns = self._turns(seen, want)[: MOST_SINGLY if _singly(pass_) else None]
        try:
            answers = perform.pop(pass_, seen, self.agent, turns, "" if self.asked or not self.agent else status)
        except Unavailable as error:
            if not self.asked:
                raise
            text = f"No more items are popped in this pass: {error.message.text}"
            perform.apply(pass_, [Notice(Message(error.message.code, text))])
            self.names = []
            return []
        self.asked = True
        unreadable: dict[str, str] = {}
        for answer in answers:
            if answer.unreadable:
                unreadable[answer.queue] = answer.unreadable
            elif answer.item is None and answer.queue in self.names:
                self.names.remove(answer.queue)
                if answer.error:
                    refused = Message(Code.POP_REFUSED, f"Queue {answer.queue}: {answer.error}")
                    perform.apply(pass_, [Notice(refused)])
        self._report(pass_, unreadable)
        return [answer.item for answer in answers if answer.item]

    def _report(self, pass_: Pass, unreadable: Mapping[str, str]) -> None:
        """Report queues whose answer cannot be read, and why; each once. After several a queue is not asked again."""
        for queue, why in unreadable.items():
            self.unreadable[queue] += 1
            if self.unreadable[queue] == 1:
                text = (
                    f"Queue {queue}: W&B's answer with its items {why}. Items are popped one by one for a while, and those of "
                    "that answer return when their lease ends."
                )
                perform.apply(pass_, [Notice(Message(Code.WANDB_ANSWER, text))])
            if self.unreadable[queue] == MOST_UNREADABLE and queue in self.names:
                self.names.remove(queue)

    def _turns(self, seen: Seen, want: int) -> list[str]:
        """Return the queues to pop from, one entry for each pop, going round them.

        The first request asks no queue for more than it seems to hold, and one more, and all queues at once if they seem
        empty. So an idle pass costs one request, and W&B no pops that find nothing.
        """
        most = dict.fromkeys(self.names, want)
        if not self.asked:
            shown = {name: seen.wandb.queued[name] for name in self.names if name in seen.wandb.queued}
            most |= {name: len(one.pending) + 1 for name, one in shown.items() if one.complete or not one.pending}
            if all(name in shown and not shown[name].pending for name in self.names):
                return list(self.names)
        turns = [name for turn in range(want) for name in self.names if turn < most[name]]
        return turns[:want]


def _is_for_others(pass_: Pass, seen: Seen, queue: str) -> bool:
    """Return whether W&B shows all items of a queue, and they were for other agents a short time ago."""
    queued, waiting = seen.wandb.queued.get(queue), pass_.ledger.waiting
    if queued is None or not queued.complete or not queued.pending:
        return False
    known = [waiting[item] for item in queued.pending if item in waiting]
    return len(known) == len(queued.pending) and all(one.foreign and pass_.now < one.until for one in known)


def _singly(pass_: Pass) -> bool:
    """Return whether items are popped one by one."""
    return pass_.now < pass_.ledger.singly_until
