"""The values of variables that are secrets by their name: hidden in whatever is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.manifest.env_files import EnvFile
from reconciler.telemetry.redact import is_amount, is_secret_variable, redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler.manifest.env_files import EnvFiles
    from reconciler.store.store import Store

# Seconds: a container that is being replaced may speak of what its record no longer names.
_AFTERLIFE: Final = 3600.0


class Secrets:
    """Has the redactor hide what records and their env files hold. ``clock`` is monotonic."""

    def __init__(self, store: Store, *, env_files: EnvFiles, clock: Callable[[], float]) -> None:
        self._store = store
        self._env_files = env_files
        self._clock = clock
        self._seen: dict[str, float] = {}

    def renew(self) -> None:
        """Hide what is in use now, and no longer what was last in use an hour ago."""
        now = self._clock()
        in_use = set(self._in_use())
        if fresh := in_use - self._seen.keys():
            redactor.register(*fresh)
        self._seen.update(dict.fromkeys(in_use, now))
        past = {secret for secret, at in self._seen.items() if at < now - _AFTERLIFE}
        if past:
            redactor.forget(*past)
        for secret in past:
            del self._seen[secret]

    def _in_use(self) -> Iterator[str]:
        for record in self._store.records.values():
            yield from _secret_values(record.spec.env)
            if record.spec.env_file is not None:
                file = self._env_files.get(record.spec.env_file)
                yield from _secret_values(file.values) if isinstance(file, EnvFile) else ()


def _secret_values(env: Mapping[str, str]) -> Iterator[str]:
    # MAX_TOKENS=100000 is no secret, and would strike out numbers everywhere.
    return (
        v for k, v in env.items() if is_secret_variable(k) and not (v.isdigit() and is_amount(k))
    )
