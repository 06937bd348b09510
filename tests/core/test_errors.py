from __future__ import annotations

import errno

import pytest

from reconciler.core.errors import (
    Diagnostic,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    ManifestError,
    PortTaken,
    ReconcilerError,
    is_engine_lost,
    is_out_of_files,
)


def test_a_diagnostic_prints_its_position():
    complaint = Diagnostic("desired.yaml", 3, 7, "unknown key")
    assert str(complaint) == "desired.yaml:3:7: unknown key"


def test_a_manifest_error_prints_every_diagnostic():
    complaints = (Diagnostic("a", 1, 1, "x"), Diagnostic("b", 2, 2, "y"))
    error = ManifestError(complaints)
    assert str(error) == "a:1:1: x\nb:2:2: y"
    assert error.diagnostics == complaints
    assert isinstance(error, ReconcilerError)


def test_a_taken_port_has_its_number_if_known():
    assert PortTaken("held", 30000).port == 30000
    assert PortTaken("held").port is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [(EngineUnavailable("no"), True), (EngineTimeout("slow"), False), (Forbidden("no"), False)],
)
def test_a_slow_engine_is_not_lost(error: Exception, lost: bool):  # noqa: FBT001
    assert is_engine_lost(error) is lost


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_lack_of_files_is_found_behind_other_errors(number):
    cause = OSError(number, "too many")
    wrapped = ValueError("cannot connect")
    wrapped.__cause__ = cause
    meanwhile = ValueError("and then")
    meanwhile.__context__ = wrapped
    assert is_out_of_files(cause)
    assert is_out_of_files(meanwhile)


@pytest.mark.parametrize("error", [None, ValueError("no"), OSError(errno.ENOENT, "no such file")])
def test_other_errors_are_no_lack_of_files(error):
    assert not is_out_of_files(error)


def test_a_forbidden_call_names_its_part_of_the_api() -> None:
    assert Forbidden("no", "EVENTS").part == "EVENTS"
    assert Forbidden("no").part == ""
