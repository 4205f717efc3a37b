"""Measures what is assumed about W&B: documents, batches, agents, leases, acks, messages and runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from vertex_launch.codes import Code
from vertex_launch.errors import LaunchError, Unavailable
from vertex_launch.model import Ack, Phase, Question, RunId, RunView
from vertex_launch.verify.bench import Bench
from vertex_launch.verify.findings import Finding, fail, note, ok, unmeasured
from vertex_launch.verify.wandb_setup import Recorder, Setup, Shown

PROJECT = "vertex-launch-verify"
"""The W&B project of the runs that are made."""

POPS = 8
LEASED, PENDING, CLAIMED, FAILED = "LEASED", "PENDING", "CLAIMED", "FAILED"
LOOKS = 5
"""Pops after which an item that was pushed has to have come: others of the command's own may come back before it."""
STILL = 20.0
"""Seconds in which the heartbeat of a run without a client must not move."""
LONGEST_LEASE = 600.0
"""Seconds after which a lease is not waited for any longer."""
LONG_MESSAGE = 5_000
REPORT = "Attach the JSON of this run (--json) to a bug report"


class Queues:
    """A queue of the command's own in W&B, or a named one, and what is measured with it."""

    def __init__(self, bench: Bench, wandb: Recorder, setup: Setup, queue: str = "") -> None:
        self._bench = bench
        self._wandb = wandb
        self._setup = setup
        self._named = queue
        self._runs = 0
        self._pushed = set[str]()
        self._agent_error = ""

    @cached_property
    def entity(self) -> str:
        """The entity that owns the queues. Raises Unavailable."""
        return self._bench.settings.entity or self._wandb.default_entity()

    @cached_property
    def queue(self) -> tuple[str, str]:
        """The name and the id of the queue, which is created if none was named. Raises Unavailable."""
        bench, name = self._bench, self._named or f"vertex-launch-verify-{self._bench.mark}"
        if self._named:
            shown = self._wandb.ask(Question(self.entity, queues=[name], peek=1))
            if name not in shown.queues:
                found = f"entity {self.entity} has no queue {name}. Create it, or leave out --queue"
                raise Unavailable("W&B", found, code=Code.CHECK_QUEUE)
            if name in shown.queued and shown.queued[name].pending:
                found = f"queue {name} is not empty. Name another one, or leave out --queue"
                raise Unavailable("W&B", found, code=Code.CHECK_QUEUE)
            return name, shown.queues[name]
        with bench.interrupts.shielded():
            bench.remove(f"queue {name} in W&B", lambda: self._delete_queue(name))
            try:
                return name, self._setup.create_queue(self.entity, name)
            except Unavailable as error:
                if made := self._id_of(name):  # the answer was lost
                    return name, made
                remedy = "If this key may not create queues, name an empty one with --queue"
                raise Unavailable(error.service, f"{error.reason}. {remedy}", code=error.message.code) from error

    def _id_of(self, queue: str) -> str:
        return self._wandb.ask(Question(self.entity)).queues.get(queue, "")

    def _delete_queue(self, queue: str) -> None:
        if known := self._id_of(queue):
            self._setup.delete_queue(known)

    @cached_property
    def agent(self) -> str:
        """An agent for the queue; the empty text if W&B refuses one, because items can be popped without."""
        try:
            return self._made_agent()
        except Unavailable as error:
            self._agent_error = str(error)
            return ""

    def _made_agent(self) -> str:
        _, queue = self.queue
        hostname = f"vertex-launch/verify-{self._bench.mark}"
        with self._bench.interrupts.shielded():
            made = self._wandb.create_agent(self.entity, [queue], hostname, {"queues": [queue], "max_jobs": 0})
            # W&B has no request that removes an agent, and the official one says KILLED when it ends.
            self._bench.remove(f"agent {made} in W&B", lambda: self._wandb.set_status(made, "KILLED"))
        return made

    def view(self, run: RunId) -> RunView | None:
        """Return a run as W&B shows it now, None if it is not shown. Raises Unavailable."""
        return self._wandb.runs([run]).get(run)

    def forget(self, run: RunId) -> None:
        """Delete a run. Raises Unavailable."""
        self._setup.delete_run(run)

    def push(self, queue: str, run_spec: Mapping[str, Any]) -> str:
        """Push an item to any queue of the entity and return its id. Raises Unavailable."""
        return self._setup.push(self.entity, queue, run_spec)

    def state(self, queue: str, item: str) -> str:
        """Return the state of an item of any queue, the empty text if W&B does not show it. Raises Unavailable."""
        view = self._wandb.items(self.entity, {item: queue}).get(item)
        return view.state if view else ""

    def shown(self, queue: str, item: str) -> Shown:
        """Return an item of any queue with its messages. Raises Unavailable."""
        return self._setup.show(self.entity, queue, item)

    def delete_item(self, queue: str, item: str) -> None:
        """Remove an item from any queue. Raises Unavailable."""
        if known := self._id_of(queue):
            self._setup.delete_item(known, item)

    # Documents, batches, agents

    def documents(self) -> Iterator[Finding]:
        """Send each question and each change of the product once."""
        name, (queue, _) = "wandb-documents", self.queue
        wandb, entity, missing = self._wandb, self.entity, RunId(self.entity, PROJECT, f"missing{self._bench.mark}")
        (item,) = self._leased(1)
        everything = Question(entity, self.agent, {item: queue}, [missing], [queue], peek=5, viewer=True)
        calls: dict[str, Callable[[], object]] = {
            "viewer": wandb.viewer,
            "beginning of a pass": lambda: wandb.ask(everything),
            "beginning of a first pass": lambda: wandb.ask(Question(entity)),
            "items": lambda: wandb.items(entity, {item: queue}),
            "runs": lambda: wandb.runs([missing]),
            "sweeps": lambda: wandb.sweeps([missing]),
            "schedulers": lambda: wandb.schedulers([missing]),
            "leases": lambda: wandb.leased(entity, queue, self.agent),
            "queues": lambda: wandb.queue_names(entity),
            "resources": lambda: wandb.resources(entity, [queue]),
            "queue configuration": lambda: wandb.queue_configs(entity, [queue]),
            "agent": lambda: self.agent or self._made_agent(),
            "agent status": lambda: wandb.set_status(self.agent, "RUNNING"),
            "pop": lambda: wandb.pop(entity, [queue], self.agent, "POLLING"),
            "single pop": lambda: wandb.pop(entity, [queue], self.agent, singly=True),
            "warning": lambda: wandb.warn([(item, "a warning of python -m vertex_launch verify")], Phase.AGENT),
            "ack": lambda: wandb.ack([(item, self._run().id)]),
            "failure": lambda: wandb.fail([(item, "a failure of python -m vertex_launch verify")], Phase.RUN),
            "end of a sweep": lambda: self._end_sweep(queue),
        }
        failed: dict[str, str] = {}
        refused: dict[str, str] = {}
        for what, call in calls.items():
            before = len(wandb.sent)
            try:
                call()
            except LaunchError as error:
                failed[what] = str(error)
            else:
                if words := [why for one in wandb.sent[before:] for why in one.refused]:
                    refused[what] = words[0]
        documents = f"{len({one.shape for one in wandb.sent})} documents"
        quoted = "; ".join(f"{what}: {why}" for what, why in (failed | refused).items())
        if failed:
            measured = f"{len(failed)} of {len(calls)} are refused: {', '.join(failed)}"
            yield fail(Code.VERIFY_DIFFERS, name, measured, REPORT, words=quoted)
        elif refused:
            measured = f"of {documents} some are refused ({', '.join(refused)}), and simpler ones follow"
            yield note(name, measured, words=quoted)
        else:
            yield ok(name, f"{documents} are accepted")

    def _end_sweep(self, queue: str) -> None:
        """End a sweep that was made for it, as a pass does when its scheduler fails."""
        run = f"sweep{self._bench.mark}"
        sweep = self._setup.start_sweep(self.entity, PROJECT, queue, run)
        if self._named:  # W&B has pushed the scheduler's item
            seen = self._wandb.ask(Question(self.entity, queues=[queue], peek=100)).queued.get(queue)
            for item in seen.pending if seen else ():
                self._forget_item(self.queue[1], item)
        ended = self._wandb.cancel_sweep(self.entity, PROJECT, sweep, run, queue)
        if not ended:
            raise Unavailable("W&B", f"sweep {sweep} did not end", code=Code.WANDB_REFUSED)

    def batches(self) -> Iterator[Finding]:
        """Send eight pops in one request."""
        name, (queue, _), before = "wandb-batches", self.queue, len(self._wandb.sent)
        self._wandb.pop(self.entity, [queue] * POPS, self.agent, "POLLING")
        sent = self._wandb.sent[before:]
        together = [one for one in sent if len(one.fields) > 1 and not one.refused]
        words = "; ".join(why for one in sent for why in one.refused)
        each = sum(one.seconds for one in sent) / POPS
        if together:
            measured = f"{POPS} pops in {len(sent)} request{'s'[: len(sent) > 1]}, {each:.2f} s for each pop"
            yield self._pops_fit(measured, each)
            return
        remedy = "Set batches to 1 for pops, updates and lookups, so that no request is refused first"
        measured = f"one operation per request, {each:.2f} s for each pop; passes adapt"
        yield note(name, measured, remedy, words=words, value=round(each, 3), suggested=dict.fromkeys(_BATCHES, 1))

    def _pops_fit(self, measured: str, each: float) -> Finding:
        """Return whether a full request for items is answered in half of the time that there is for it."""
        name, settings, value = "wandb-batches", self._bench.settings, round(each, 3)
        pops, fits = settings.batches.pops, max(1, int(settings.timeouts.read / 2 / max(each, 0.001)))
        if pops <= fits:
            return ok(name, measured, value=value)
        remedy = f"Set batches.pops to {fits}, so that no request is answered late first"
        measured = f"{measured}; passes adapt from {pops} on"
        return note(name, measured, remedy, value=value, suggested={"batches.pops": fits})

    def agents(self) -> Iterator[Finding]:
        """Look an agent up by its id and in the list of all."""
        name, (_, queue) = "wandb-agent-queues", self.queue
        if not self.agent:
            yield note(name, "W&B creates no agent, and items are popped without one", words=self._agent_error)
            return
        shown = self._wandb.ask(Question(self.entity, agent=self.agent)).agent
        listed = {one.id for one in self._wandb.ask(Question(self.entity)).agents}
        if shown is None and self.agent not in listed:
            measured = "W&B shows the agent neither by its id nor in its list"
            yield note(name, measured, "A stop of the agent in W&B is not seen. Stop the tick instead")
        elif shown is None or queue not in shown.queues:
            measured = "it is found by its id" if shown else "only the list of all agents shows it"
            seen = f"its queues are {list(shown.queues)}" if shown else ""
            yield note(name, f"{measured}, without the id of its queue; passes remember it", words=seen)
        else:
            yield ok(name, "it is found by its id, with its queue's id")

    # Leases and acks

    def lease(self) -> Iterator[Finding]:
        """Wait until the lease of an item ends."""
        name, late, settings, began = "wandb-lease", "wandb-late-ack", self._bench.settings, self._bench.clock.now()
        queue, _ = self.queue
        item, other = self._leased(2)
        most = min(LONGEST_LEASE, max(240.0, 3 * settings.lease))

        leased_at = began

        def back() -> str | None:
            nonlocal leased_at
            state = self.state(queue, item)
            if state == LEASED:
                leased_at = self._bench.clock.now()
            return state if state not in ("", LEASED) else None

        state, _ = self._bench.until(back, most)
        seconds = self._bench.clock.now() - began
        if state is None:
            yield fail(
                Code.VERIFY_DIFFERS, name, f"still leased after {seconds:.0f} s", REPORT, value=round(seconds, 1)
            )
            yield unmeasured(late, "the lease does not end")
            return
        if state != PENDING:
            yield unmeasured(name, f"the item became {state}")
            yield unmeasured(late, "the lease could not be measured")
            return
        if self._popped_again(queue, item):
            # It was looked up each second, so that it ended less than a second after that.
            yield self._lease_fits(math.floor(leased_at - began + 1), seconds)
        else:
            measured = f"it is PENDING after {seconds:.0f} s, and no pop returns it"
            yield fail(Code.VERIFY_DIFFERS, name, measured, REPORT, value=round(seconds, 1))
        yield self._late_ack(queue, other)

    def _popped_again(self, queue: str, item: str) -> bool:
        """Return whether a pop gives the item again."""
        return any(one.item and one.item.id == item for one in self._wandb.pop(self.entity, [queue], self.agent))

    def _lease_fits(self, suggested: int, seconds: float) -> Finding:
        name, settings = "wandb-lease", self._bench.settings
        measured, more = (
            f"it comes back after {seconds:.0f} s",
            {"value": round(seconds, 1), "suggested": {"lease": suggested}},
        )
        least = settings.timeouts.create + settings.timeouts.margin
        if seconds < settings.lease - 1:
            remedy = f"Set {settings.where('lease')} to {suggested}"
            if suggested <= least:
                remedy += f", and timeouts.create and timeouts.margin (now {least:g} s) to less than that together"
            return fail(Code.VERIFY_SETTING, name, f"{measured}, and lease is {settings.lease:g}", remedy, **more)
        if seconds > 2 * settings.lease:
            remedy = f"Set {settings.where('lease')} to {suggested}, so that a pass may start more items"
            return note(name, f"{measured}; lease is {settings.lease:g}", remedy, **more)
        return ok(name, f"{measured}; lease: {settings.lease:g} fits", **more)

    def _late_ack(self, queue: str, item: str) -> Finding:
        name, run = "wandb-late-ack", self._run().id
        (answer,) = self._wandb.ack([(item, run)])
        shown = self.shown(queue, item)
        measured = f"it is {answer.value}, and the item is {shown.state}"
        claimed = shown.state == CLAIMED and shown.run == run
        if (answer is Ack.ACCEPTED) == claimed and answer is not Ack.UNKNOWN:
            return ok(name, measured)
        return fail(Code.VERIFY_DIFFERS, name, measured, REPORT)

    def acks(self) -> Iterator[Finding]:
        """Claim an item, ack it for another run, and fail it."""
        name, failed, (queue, _) = "wandb-refused-ack", "wandb-failure", self.queue
        (item,) = self._leased(1)
        run, text = self._run().id, f"a failure of python -m vertex_launch verify {self._bench.mark}"
        (claimed,) = self._wandb.ack([(item, run)])
        before = len(self._wandb.sent)
        (again,) = self._wandb.ack([(item, self._run().id)])
        words = "; ".join(why for one in self._wandb.sent[before:] for why in one.refused)
        shown = self.shown(queue, item)
        measured = f"the first ack is {claimed.value}, another run's is {again.value}"
        if (claimed, again, shown.run) == (Ack.ACCEPTED, Ack.REFUSED, run):
            yield ok(name, measured, words=words)
        else:
            yield fail(Code.VERIFY_DIFFERS, name, f"{measured}; the item is {shown.state}", REPORT, words=words)
        (taken,) = self._wandb.fail([(item, text)], Phase.RUN)
        shown = self.shown(queue, item)
        measured = f"the item is {shown.state}, {'with' if text in shown.error else 'without'} the reason"
        if taken and shown.state == FAILED and text in shown.error:
            yield ok(failed, measured)
        else:
            yield fail(Code.VERIFY_DIFFERS, failed, measured, REPORT, words=shown.error)

    # Messages

    def messages(self) -> Iterator[Finding]:
        """Warn about a leased item, in few words and in many."""
        short, long, (queue, _) = "wandb-warning", "wandb-message-length", self.queue
        (item,) = self._leased(1)
        text = f"a warning of python -m vertex_launch verify {self._bench.mark}"
        (taken,) = self._wandb.warn([(item, text)], Phase.AGENT)
        warnings = self.shown(queue, item).warnings
        if taken and any(text in one for one in warnings):
            yield ok(short, "W&B shows it")
        else:
            measured = "W&B takes it and does not show it" if taken else "W&B does not take it"
            yield fail(Code.VERIFY_DIFFERS, short, measured, REPORT)
        before = len(self._wandb.sent)
        full = (self._bench.mark * LONG_MESSAGE)[:LONG_MESSAGE]
        self._wandb.warn([(item, full)], Phase.AGENT)
        words = "; ".join(why for one in self._wandb.sent[before:] for why in one.refused)
        longest = max((len(one) for one in self.shown(queue, item).warnings if one[:40] in full), default=0)
        if longest >= LONG_MESSAGE:
            yield ok(long, f"all {longest:,} characters are shown", value=longest)
        elif longest:
            yield note(long, f"{longest:,} characters are shown, and the rest is cut", words=words, value=longest)
        else:
            yield fail(Code.VERIFY_DIFFERS, long, "a long message is not shown at all", REPORT, words=words, value=0)

    # Runs

    def runs(self) -> Iterator[Finding]:
        """Create a run without a client, look at its heartbeat, and stop it."""
        run = self._run()
        with self._bench.interrupts.shielded():
            self._bench.remove(f"run {run.id} in W&B", lambda: self._setup.delete_run(run))
            known = self._setup.start_run(run)
        yield self._heartbeat(run)
        yield self._stop(run, known)

    def _heartbeat(self, run: RunId) -> Finding:
        name, first = "wandb-heartbeat", self._beat(run)
        self._bench.pause(STILL)
        second = self._beat(run)
        if first is None and second is None:
            return note(name, "W&B shows no heartbeat; such runs end with their jobs")
        if first == second:
            return ok(name, f"it stands still for {STILL:.0f} s")
        return fail(Code.VERIFY_DIFFERS, name, "it moves without a client", REPORT)

    def _beat(self, run: RunId) -> float | None:
        view = self.view(run)
        if view is None:
            raise Unavailable("W&B", f"run {run.id} is not shown", code=Code.WANDB_REFUSED)
        return view.heartbeat

    def _stop(self, run: RunId, known: str) -> Finding:
        name, settings = "wandb-stop", self._bench.settings
        self._setup.stop_run(known)

        def stopped() -> bool | None:
            view = self.view(run)
            return True if view and view.stopped else None

        seen, took = self._bench.until(stopped, 90)
        if seen is None:
            return fail(Code.VERIFY_DIFFERS, name, f"W&B does not show it after {took:.0f} s", REPORT)
        measured = f"it is shown after {took:.0f} s; stopped_run_timeout: {settings.stopped_run_timeout:g}"
        return ok(name, measured, value=round(took, 1))

    def _run(self) -> RunId:
        """Return the id of a run that does not exist yet."""
        self._runs += 1
        return RunId(self.entity, PROJECT, f"verify{self._bench.mark}{self._runs}")

    def _leased(self, count: int) -> list[str]:
        """Push items to the queue and pop them. Return their ids. Raises Unavailable."""
        queue, queue_id = self.queue
        agent, wanted = self.agent, []
        for number in range(count):
            spec = {"entity": self.entity, "project": PROJECT, "name": f"verify {number + 1}", "resource": "gcp-vertex"}
            with self._bench.interrupts.shielded():
                wanted.append(self._setup.push(self.entity, queue, spec))
                if self._named:
                    self._forget_item(queue_id, wanted[-1])
        self._pushed |= set(wanted)
        got = set[str]()
        for _ in range(LOOKS):
            popped = self._wandb.pop(self.entity, [queue] * count, agent)
            got |= {one.item.id for one in popped if one.item}
            if got >= set(wanted):
                return wanted
            errors = "; ".join(filter(None, (one.error for one in popped))) or "none came"
            if strange := got - self._pushed:
                errors = f"it has other items, such as {min(strange)}"
                break
        text = f"the items that were pushed to queue {queue} did not come back from it: {errors}"
        raise Unavailable("W&B", text, code=Code.WANDB_REFUSED)

    def _forget_item(self, queue_id: str, item: str) -> None:
        self._bench.remove(f"item {item} in W&B", lambda: self._setup.delete_item(queue_id, item))


_BATCHES = ("batches.pops", "batches.updates", "batches.lookups")
