"""Register the values of secret variables with the log redactor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.manifest.env_files import EnvFile
from reconciler.telemetry.redact import is_amount, is_secret_variable, redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.manifest.env_files import EnvFiles
    from reconciler.store.store import Store

# Seconds after the last use. A container that is being replaced may still log a former secret.
_KEEP: Final = 3600.0


class Secrets:
    """Keeps the redactor's list of secrets current: those in records and in their env files.

    ``clock`` is monotonic.
    """

    def __init__(self, store: Store, *, env_files: EnvFiles, clock: Callable[[], float]) -> None:
        self._store = store
        self._env_files = env_files
        self._clock = clock
        self._seen: dict[str, float] = {}

    def renew(self) -> None:
        """Redact the secrets in use now, and stop redacting those unused for an hour."""
        now = self._clock()
        in_use: set[str] = set()
        for record in self._store.records.values():
            in_use |= _secret_values(record.spec.env)
            file = self._env_files.get(record.spec.env_file) if record.spec.env_file else None
            if isinstance(file, EnvFile):
                in_use |= _secret_values(file.values)
        if fresh := in_use - self._seen.keys():
            redactor.register(*fresh)
        self._seen.update(dict.fromkeys(in_use, now))
        past = {secret for secret, at in self._seen.items() if at < now - _KEEP}
        if past:
            redactor.forget(*past)
        for secret in past:
            del self._seen[secret]


def _secret_values(env: Mapping[str, str]) -> set[str]:
    # MAX_TOKENS=100000 is no secret, and would redact numbers everywhere.
    return {
        v for k, v in env.items() if is_secret_variable(k) and not (v.isdigit() and is_amount(k))
    }
