from __future__ import annotations

import errno

import pytest

from reconciler.core.errors import (
    Diagnostic,
    Forbidden,
    ManifestError,
    PortTaken,
    ReconcilerError,
    is_out_of_files,
)


def test_a_diagnostic_says_where():
    complaint = Diagnostic("desired.yaml", 3, 7, "unknown key")
    assert str(complaint) == "desired.yaml:3:7: unknown key"


def test_a_bad_manifest_says_all_that_is_wrong():
    complaints = (Diagnostic("a", 1, 1, "x"), Diagnostic("b", 2, 2, "y"))
    error = ManifestError(complaints)
    assert str(error) == "a:1:1: x\nb:2:2: y"
    assert error.diagnostics == complaints
    assert isinstance(error, ReconcilerError)


def test_a_taken_port_is_named_where_it_is_known():
    assert PortTaken("held", 30000).port == 30000
    assert PortTaken("held").port is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_that_no_file_can_be_opened_is_seen_through_what_it_caused(number):
    cause = OSError(number, "too many")
    wrapped = ValueError("cannot connect")
    wrapped.__cause__ = cause
    meanwhile = ValueError("and then")
    meanwhile.__context__ = wrapped
    assert is_out_of_files(cause)
    assert is_out_of_files(meanwhile)


@pytest.mark.parametrize("error", [None, ValueError("no"), OSError(errno.ENOENT, "no such file")])
def test_other_errors_are_other_errors(error):
    assert not is_out_of_files(error)


def test_a_forbidden_call_names_its_part_of_the_api() -> None:
    assert Forbidden("no", "EVENTS").part == "EVENTS"
    assert Forbidden("no").part == ""
