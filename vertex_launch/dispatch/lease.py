"""Pop items: how many to take off the queues, and whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vertex_launch.codes import Code
from vertex_launch.dispatch import perform
from vertex_launch.dispatch.context import Notice, Pass
from vertex_launch.dispatch.look import Seen
from vertex_launch.errors import Message, Unavailable
from vertex_launch.model import Item


@dataclass
class Queues:
    """The queues that may still have items for this pass, and whether the first request was sent."""

    names: list[str]
    asked: bool = False

    def lease(self, pass_: Pass, seen: Seen, want: int, status: str) -> list[Item]:
        """Lease up to ``want`` items, going round the queues; fewer once they are empty or the time is up.

        The first request refreshes the agent's status. Raises Unavailable if that request fails.
        """
        leased: list[Item] = []
        while self.names and pass_.in_time and want > len(leased):
            leased += self._pop(pass_, seen, want - len(leased), status)
        return leased

    def without(self, items: Sequence[Item]) -> None:
        """Leave out the queues of these items."""
        left_out = {item.queue for item in items}
        self.names = [name for name in self.names if name not in left_out]

    def _pop(self, pass_: Pass, seen: Seen, want: int, status: str) -> list[Item]:
        """Send one request; a queue that gives nothing is not asked again in this pass."""
        turns = self._turns(seen, want)
        try:
            answers = perform.pop(pass_, seen, turns, "" if self.asked else status)
        except Unavailable as error:
            if not self.asked:
                raise
            text = f"No more items are popped in this pass: {error.message.text}"
            perform.apply(pass_, [Notice(Message(error.message.code, text))])
            self.names = []
            return []
        self.asked = True
        for answer in answers:
            if answer.item is None and answer.queue in self.names:
                self.names.remove(answer.queue)
                if answer.error:
                    refused = Message(Code.POP_REFUSED, f"Queue {answer.queue}: {answer.error}")
                    perform.apply(pass_, [Notice(refused)])
        return [answer.item for answer in answers if answer.item]

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
