"""W&B's launch queues: what ``wandb_reads`` asks, and all changes: pop, ack, fail, warn, agents, and ending a sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vertex_launch import __version__, log
from vertex_launch.adapters.wandb_answer import SERVICE, Result, id_of, mapping_of, text_of
from vertex_launch.adapters.wandb_document import Field, project_field
from vertex_launch.adapters.wandb_reads import WandbReads, scheduler_of
from vertex_launch.adapters.wandb_server import LEFT_OUT, REGISTRY
from vertex_launch.codes import Code
from vertex_launch.errors import Message, Unavailable
from vertex_launch.limits import LARGEST_LEASE, LONGEST_ITEM
from vertex_launch.model import Ack, Item, Phase, Popped, RunId
from vertex_launch.problems import kind

LONGEST_MESSAGE = 5_000
"""Characters of a failure or a warning; the middle of a longer one is left out."""

SHORT_MESSAGE = 128
"""Characters of a message that is sent once more after W&B refused it: some servers may take no longer ones."""

LIVE_SWEEP = ("RUNNING", "PAUSED", "PENDING")
"""States of a sweep that can still be cancelled (``_set_sweep_state`` in wandb/apis/public/sweeps.py)."""


class WandbQueue(WandbReads):
    """A typed client for the launch queues of one W&B server."""

    def create_agent(self, entity: str, queue_ids: Sequence[str], hostname: str, config: Mapping[str, Any]) -> str:
        """Create an agent that serves these queues and return its id. Raises Unavailable."""
        text = (
            "createLaunchAgent?(input: { entityName: $entity:String!, projectName: $project:String!, "
            "runQueues: $queues:[ID!]!, hostname: $hostname:String!, agentConfig: $config:JSONString, "
            "version: $version:String }) { launchAgentId }"
        )
        names = {"entity": entity, "project": REGISTRY, "hostname": hostname, "version": f"vertex-launch@{__version__}"}
        question = Field(text, queues=list(queue_ids), config=json.dumps(config), **names)
        answer = self._request("mutation", [question], repeatable=False)[0]
        if not (agent := id_of(answer.get("launchAgentId"))):
            raise answer.refusal(f"cannot create a launch agent for entity {entity}", "the answer has no id")
        return agent

    def set_status(self, agent: str, status: str) -> None:
        """Refresh the agent's status (POLLING or RUNNING); without that W&B shows its queues as idle."""
        self._check_status(self._batch([_status(agent, status)], 1)[0], taken=False)

    def _check_status(self, answer: Result, taken: bool) -> None:
        """Report a status that W&B refused; it is left out from now on if W&B has ``taken`` other operations beside it."""
        if answer.refused and taken:
            self._leave_out({"updateLaunchAgent"} - self._pace.refused)
        if answer.error and answer is not LEFT_OUT:
            text = f"W&B did not accept the launch agent's status, so it may show the queues as idle: {answer.error}"
            log.warning(Message(Code.WANDB_AGENT_STATUS, text))

    def pop(
        self, entity: str, queues: Sequence[str], agent: str, status: str = "", *, singly: bool = False
    ) -> list[Popped]:
        """Lease one item for each entry of ``queues``, in that order; a queue may be listed many times.

        If items are large, the last entries have no answer, and no item is leased for them.

        With ``status`` the same request refreshes the agent's status. A pop whose answer is lost is not repeated, because
        the end of its lease brings the item back. Raises Unavailable if no pop was answered.

        With ``singly`` each pop is a request of its own, so that an answer that cannot be read is the fault of one item.
        """
        fields = [_status(agent, status)] if status and agent else []
        text = (
            "popFromRunQueue(input: { entityName: $entity:String!, projectName: $project:String!, queueName: $queue:String!, "
            "launchAgentId: $agent:ID }) { runQueueItemId runSpec }"
        )
        fields += [Field(text, entity=entity, project=REGISTRY, queue=queue, agent=agent or None) for queue in queues]
        size = 1 if singly else self._batches.pops
        answers = self._batch(fields, size, repeatable=False, keep=_with_text, enough=_is_enough)
        if len(fields) > len(queues):
            self._check_status(answers.pop(0), any(answer.value for answer in answers))
        if queues and all(answer.lost and not answer.unreadable for answer in answers):
            raise Unavailable(SERVICE, f"no pop was answered: {answers[0].error}", code=Code.WANDB_UNAVAILABLE)
        popped = [_popped(queue, answer, singly=singly) for queue, answer in zip(queues, answers, strict=False)]
        for queue in {one.queue for one in popped if one.unreadable} if singly else ():
            popped = self._named(entity, queue, agent, popped)
        return popped

    def _named(self, entity: str, queue: str, agent: str, popped: Sequence[Popped]) -> list[Popped]:
        """Name the items that were popped without an id, if the agent's other leases leave no doubt which ones they are."""
        nameless = [one for one in popped if one.unreadable and one.queue == queue]
        if not agent:
            return list(popped)
        try:
            others = self.leased(entity, queue, agent) - {one.item.id for one in popped if one.item}
        except Unavailable as error:
            log.LOGGER.info("W&B does not show which items of queue %s are leased: %s", queue, error.reason)
            return list(popped)
        if len(others) != len(nameless):
            return list(popped)
        names = dict(zip(map(id, nameless), sorted(others), strict=True))
        return [
            Popped(queue, Item(names[id(one)], queue, None, one.unreadable)) if id(one) in names else one
            for one in popped
        ]

    def ack(self, claims: Sequence[tuple[str, str]], within: float = math.inf) -> list[Ack]:
        """Claim items for runs (pairs of ids), within so many seconds. A refusal may answer our own repeated request."""
        text = "ackRunQueueItem(input: { runQueueItemId: $item:ID!, runName: $run:String! }) { success }"
        fields = [Field(text, item=item, run=run) for item, run in claims]
        answers = self._batch(fields, self._batches.updates, within=within)
        for (item, _), answer in zip(claims, answers, strict=True):
            if answer.error:
                log.LOGGER.info("ack of item %s: %s", item, answer.error, extra={"item": item})
        return [
            Ack.UNKNOWN if answer.lost else Ack.ACCEPTED if _succeeded(answer) else Ack.REFUSED for answer in answers
        ]

    def fail(self, failures: Sequence[tuple[str, str]], phase: Phase, within: float = math.inf) -> list[bool]:
        """Fail items (id and reason), within so many seconds. Return for each whether W&B accepted it."""
        return self._update("failRunQueueItem", failures, phase, within)

    def warn(self, warnings: Sequence[tuple[str, str]], phase: Phase, within: float = math.inf) -> list[bool]:
        """Add warnings to items (id and text), within so many seconds. Return for each whether W&B accepted it."""
        return self._update("updateRunQueueItemWarning", warnings, phase, within)

    def _update(self, mutation: str, messages: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        text = (
            f"{mutation}?(input: {{ runQueueItemId: $item:ID!, message: $message:String!, stage: $stage:String! }}) "
            "{ success }"
        )
        until = self._clock() + within

        def send(some: Sequence[tuple[str, str]], longest: int) -> list[Result]:
            cut = [(item, _without_middle(words, longest)) for item, words in some]
            fields = [Field(text, item=item, message=words, stage=phase.value) for item, words in cut]
            return self._batch(fields, self._batches.updates, within=until - self._clock())

        answers = send(messages, LONGEST_MESSAGE)
        refused = [
            index
            for index, (answer, (_, words)) in enumerate(zip(answers, messages, strict=True))
            if not answer.lost and not _succeeded(answer) and len(words) > SHORT_MESSAGE
        ]
        for index, answer in zip(refused, send([messages[index] for index in refused], SHORT_MESSAGE), strict=True):
            answers[index] = answer if _succeeded(answer) else answers[index]
        for (item, _), answer in zip(messages, answers, strict=True):
            if not _succeeded(answer):
                trouble = f"W&B did not accept {mutation} of item {item}: {answer.error or 'refused'}"
                log.warning(Message(Code.WANDB_ITEM_UPDATE, trouble), item=item)
        return [_succeeded(answer) for answer in answers]

    def cancel_sweep(self, entity: str, project: str, sweep: str, scheduler: str, queue: str) -> bool | None:
        """Cancel a sweep whose scheduler is the run of this id from this queue.

        Return False if it has ended or does not exist, None if it does not name this scheduler. Raises Unavailable if W&B
        cannot answer.
        """
        selection = "sweep(sweepName: $id:String!) { id state scheduler }"
        answer = self._ask(project_field(RunId(entity, project, sweep), selection))
        found = mapping_of(answer.get("sweep"))
        if not found and not answer.lacks("sweep"):
            raise answer.refusal(f"cannot look up sweep {entity}/{project}/{sweep}")
        if not found or text_of(found.get("state")).upper() not in LIVE_SWEEP:
            return False
        launched = scheduler_of(found, sweep)
        if launched is None or not launched.fits(scheduler, queue):
            return None
        text = (
            "upsertSweep(input: { id: $id:ID, state: $state:String, entityName: $entity:String, projectName: $project:String })"
            " { sweep { name } }"
        )
        change = Field(text, id=found.get("id"), state="CANCELED", entity=entity, project=project)
        answer = self._request("mutation", [change])[0]
        if not answer.value:
            raise answer.refusal(f"cannot cancel sweep {entity}/{project}/{sweep}", "the answer has no sweep")
        return True


def _popped(queue: str, answer: Result, *, singly: bool) -> Popped:
    """Return the answer to a pop. What is cut off may be another item's fault, unless that was popped ``singly``."""
    found, item, why = answer.get("runQueueItemId"), id_of(answer.get("runQueueItemId")), answer.unreadable
    if why and (not item or (why.cut_off and not singly)):
        return Popped(queue, error=answer.error, unreadable=why.found)
    if found and not item:
        return Popped(queue, error=f"W&B's answer has {kind(found)} as an item's id, which is not one")
    if item and not why and answer.error and answer.get("runSpec") is None and not answer.get("characters"):
        return Popped(queue, error=answer.error)  # its lease brings it back
    if item:
        kept = Item(item, queue, answer.get("runSpec"), why.found if why else "", answer.get("characters") or 0)
        return Popped(queue, kept)
    return Popped(queue, error=answer.error)


def _with_text(answer: Result) -> Result:
    """Return the answer to a pop with the run spec as text, which takes least memory; of a larger one only its length."""
    if answer.get("runSpec") is None:
        return answer
    spec = answer.get("runSpec")
    text = spec if isinstance(spec, str) else json.dumps(spec, ensure_ascii=False)
    kept = {"runSpec": text} if len(text) <= LONGEST_ITEM else {"characters": len(text)}
    return replace(answer, value={"runQueueItemId": answer.get("runQueueItemId"), **kept})


def _is_enough(answers: Sequence[Result]) -> bool:
    return sum(len(answer.get("runSpec") or "") for answer in answers) > LARGEST_LEASE


def _succeeded(answer: Result) -> bool:
    return answer.get("success") is True


def _status(agent: str, status: str) -> Field:
    text = "updateLaunchAgent?(input: { launchAgentId: $agent:ID!, agentStatus: $status:String }) { success }"
    return Field(text, agent=agent, status=status)


def _without_middle(text: str, longest: int) -> str:
    """Return a message that is not too long: its start and its end, and between them how much is left out."""
    if len(text) <= longest:
        return text
    if longest == SHORT_MESSAGE:
        return f"{text[: longest - 1]}…"
    mark = "\n[… {} characters are left out here …]\n"
    kept = (longest - len(mark.format(len(text)))) // 2
    return text[:kept] + mark.format(len(text) - 2 * kept) + text[-kept:]
