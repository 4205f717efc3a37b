"""The preflight's checks of queues, where W&B fails only after it has accepted the key."""

from __future__ import annotations

from typing import cast

import pytest

from tests.support.specs import SETTINGS
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable
from vertex_launch.preflight.queues import Queues


class Wandb:
    """W&B that accepts the key and then fails with this code."""

    def __init__(self, code: Code) -> None:
        self._code = code

    def viewer(self) -> tuple[str, str]:
        return "ada", "acme"

    def queue_names(self, entity: str) -> list[str]:
        raise Unavailable("W&B", "no answer", code=self._code)


@pytest.mark.parametrize("code", [Code.WANDB_ENTITY, Code.WANDB_UNAVAILABLE])
def test_only_a_wrong_entity_is_to_be_corrected(code: Code) -> None:
    _, line = Queues(SETTINGS, cast(WandbQueue, Wandb(code)), ()).lines()
    assert line.code is code
    assert (SETTINGS.where("entity") in line.remedy) == (code is Code.WANDB_ENTITY)
