from __future__ import annotations

from reconciler.core.errors import Diagnostic, ManifestError, PortTaken, ReconcilerError


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
