"""The problems and warnings of one run spec, collected so that its author sees all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected, Message, Problem, brief
from vertex_launch.limits import LONGEST_WARNING, MOST_PROBLEMS, MOST_WARNINGS
from vertex_launch.problems import LONGEST_SCANNED, beginning, problem, redact


@dataclass
class Findings:
    """Problems, which reject the item, and warnings, which do not."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Message] = field(default_factory=list)

    def wrong(self, place: str, found: str, remedy: str, code: Code) -> None:
        """Add a problem: ``found`` and ``remedy`` are sentences without their full stop.

        Raises ItemRejected after the last one that is listed: a run spec that is full of mistakes costs no more than that.
        """
        self.problems.append(problem(place, found, remedy, code=code))
        if len(self.problems) == MOST_PROBLEMS:
            self.check()

    def warn(self, sentence: str, code: Code) -> None:
        """Add a warning, once; those after the last one that is listed are left out."""
        message = Message(code, brief(sentence, LONGEST_WARNING))
        if len(self.warnings) < MOST_WARNINGS and message not in self.warnings:
            self.warnings.append(message)

    def about(self, *places: str) -> bool:
        """Return whether there is a problem with exactly one of these places."""
        return any(one.place in places for one in self.problems)

    def check(self) -> None:
        """Raise ItemRejected with every problem, if there is any."""
        if len(self.problems) == 1:
            message = self.problems[0].message
            raise ItemRejected(message.text, code=message.code)
        if self.problems:
            lines = [f"- {one}" for one in self.problems]
            least = "at least " if len(self.problems) == MOST_PROBLEMS else ""
            head = f"The run spec has {least}{len(self.problems)} problems:"
            raise ItemRejected("\n".join([head, *lines]), code=Code.SPEC_PROBLEMS)


def printable(text: str) -> str:
    """Return unchecked text in a form that fits into a sentence."""
    text = f"a text of {len(text)} characters" if len(text) > LONGEST_SCANNED else redact(text)  # half a key is none
    return beginning(text if text.isprintable() else repr(text)[1:-1])
