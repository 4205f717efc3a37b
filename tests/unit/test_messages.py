"""The snapshot shows the sentences that the product prints today."""

from __future__ import annotations

from tests.support import messages


def test_the_snapshot_is_what_make_messages_writes() -> None:
    shown = messages.SNAPSHOT.read_text().splitlines()
    assert shown == messages.render().splitlines(), "review the change of words, then run `make messages`"
