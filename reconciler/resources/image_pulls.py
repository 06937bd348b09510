"""Pull images in the background, each once for all sandboxes that wait for it."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from contextvars import Context
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import EngineError, PullFailed, ReconcilerError
from reconciler.core.snapshot import ImageState
from reconciler.telemetry import events
from reconciler.telemetry.supervision import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from reconciler.engine.protocol import Engine, PullProgress
    from reconciler.telemetry.recorder import Recorder

_PROGRESS_EVERY: Final = 5.0
# Waiting sandboxes that one log line names.
_SHOWN: Final = 20


class ImagePuller:
    """The state of the image that each key wants, and the running pulls.

    Args:
        on_done: Called with key, image and error (None for success), for every key that waited.
        pulling: Context manager in which an image is pulled, to find out what the pull added.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_done: Callable[[str, str, EngineError | None], None],
        recorder: Recorder,
        clock: Callable[[], float],
        pulling: Callable[[str], AbstractAsyncContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self._engine = engine
        self._pulling = pulling
        self._on_done = on_done
        self._recorder = recorder
        self._clock = clock
        self._states: dict[str, tuple[str, ImageState]] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._failing: set[str] = set()
        self._started: set[str] = set()

    def state(self, key: str, image: str) -> ImageState:
        """Return the state of the image that the key wants now."""
        known_image, state = self._states.get(key, (image, ImageState.UNKNOWN))
        return state if known_image == image else ImageState.UNKNOWN

    def mark(self, key: str, image: str, state: ImageState) -> None:
        """Record the state of the image that the key wants."""
        self._states[key] = (image, state)

    def request(self, key: str, image: str) -> None:
        """Pull the image, unless a pull is running; the key waits for it."""
        self.release(key, image)
        self._states[key] = (image, ImageState.PULLING)
        if image not in self._pulls:
            # In a new context: the pull may outlive the key that requested it.
            self._pulls[image] = asyncio.create_task(
                self._pull(image),
                name=f"pull {image}",
                context=Context(),
            )

    def release(self, key: str, image: str | None) -> None:
        """Record that the key wants ``image`` now, or none; cancel a pull that no key waits for."""
        former, _ = self._states.get(key, (image, ImageState.UNKNOWN))
        if former == image or former is None:
            return
        del self._states[key]
        self._failing &= {image for image, _ in self._states.values()}
        if former in self._pulls and not self._waiting(former):
            self._pulls.pop(former).cancel()
            if former in self._started:
                self._started.remove(former)
                self._recorder.log(events.PullCancelled(image=former))

    async def close(self) -> None:
        """Cancel every pull."""
        pulls = list(self._pulls.values())
        for task in pulls:
            task.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    def _waiting(self, image: str) -> list[str]:
        return [key for key, state in self._states.items() if state == (image, ImageState.PULLING)]

    async def _pull(self, image: str) -> None:
        began = self._clock()
        if image not in self._failing:
            # A repeated pull is not logged: the log has its failure, and the number of repeats.
            self._started.add(image)
            self._recorder.log(events.PullStarted(image=image, sandboxes=self._shown(image)))
        try:
            async with self._pulling(image):
                await self._engine.pull(image, _Progress(image, self._recorder, self._clock))
        except EngineError as error:
            self._fail(image, error)
        except ReconcilerError as error:
            self._fail(image, PullFailed(f"{image}: {error}"))
        except Exception as error:  # noqa: BLE001 - a defect must not leave keys waiting
            log_failure(f"pull {image}", error, self._recorder, retry_in=None)
            self._fail(image, PullFailed(f"{image}: internal error; see the daemon's log"))
        else:
            seconds = round(self._clock() - began, 1)
            self._failing.discard(image)
            self._recorder.resolve(events.PullFailed, about=image)
            self._recorder.log(events.PullDone(image=image, seconds=seconds))
            self._finish(image, ImageState.FRESH, None)

    def _fail(self, image: str, error: EngineError) -> None:
        self._failing.add(image)
        self._recorder.complain(
            events.PullFailed(image=image, error=str(error), sandboxes=self._shown(image)),
            about=image,
        )
        self._finish(image, ImageState.UNKNOWN, error)

    def _finish(self, image: str, state: ImageState, error: EngineError | None) -> None:
        self._pulls.pop(image, None)
        self._started.discard(image)
        for key in self._waiting(image):
            self._states[key] = (image, state)
            self._on_done(key, image, error)

    def _shown(self, image: str) -> list[str]:
        return sorted(self._waiting(image))[:_SHOWN]


class _Progress:
    """Logs the progress of a pull every few seconds."""

    def __init__(self, image: str, recorder: Recorder, clock: Callable[[], float]) -> None:
        self._image = image
        self._recorder = recorder
        self._clock = clock
        self._last = clock()

    def __call__(self, progress: PullProgress) -> None:
        if self._clock() - self._last < _PROGRESS_EVERY:
            return
        self._last = self._clock()
        self._recorder.log(
            events.PullProgress(
                image=self._image,
                layers=f"{progress.layers_done}/{progress.layers}",
                bytes_done=progress.bytes_done,
                bytes_total=progress.bytes_total,
            )
        )
