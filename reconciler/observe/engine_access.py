"""Log which parts of its API the engine forbids and allows again, and each of its warnings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.engine.protocol import Engine
    from reconciler.telemetry.recorder import Recorder

_INTERVAL: Final = 2.0


class EngineAccess:
    """Compares what the engine forbids with what was logged."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder
        self._logged: set[str] = set()
        self._warned = 0

    async def run(self) -> None:
        """Log changes until cancelled."""
        while True:
            self.review()
            await asyncio.sleep(_INTERVAL)

    def review(self) -> None:
        """Log the changes since the last review."""
        forbidden = {error.part: str(error) for error in self._engine.forbidden()}
        for part in sorted(forbidden.keys() - self._logged):
            self._recorder.log(events.EngineForbidden(part=part, error=forbidden[part]))
        for part in sorted(self._logged - forbidden.keys()):
            self._recorder.log(events.EngineAllowed(part=part))
        self._logged = set(forbidden)
        warnings = self._engine.warnings()
        for warning in warnings[self._warned :]:
            self._recorder.log(events.EngineWarning(warning=warning))
        self._warned = len(warnings)
