"""Without free descriptors, the process is reported, and no file counts as invalid."""

from pathlib import Path

import pytest

from reconciler.manifest.env_files import read_env_file
from reconciler.manifest.loader import load
from reconciler.manifest.text_file import TransientReadError
from tests.harness.descriptors import none_left
from tests.manifest.manifests import HEAD


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_file_that_cannot_be_opened_is_to_be_read_again(
    tmp_path: Path, *, as_folder: bool
) -> None:
    desired = tmp_path / "desired.yaml"
    desired.write_text(HEAD + "  alice: {spec: web}\n")
    asked = tmp_path if as_folder else desired
    with none_left():
        found = load(asked)
    assert (found.fatal, found.must_retry, found.empty, dict(found.records)) == (
        True,
        True,
        False,
        {},
    )
    (said,) = found.diagnostics
    assert (said.file, "LimitNOFILE" in said.message) == (str(asked), True)
    again = load(asked)
    assert (again.must_retry, set(again.records)) == (False, {"alice"})


def test_an_env_file_that_cannot_be_opened_is_to_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text("A=1\n")
    with none_left(), pytest.raises(TransientReadError, match="LimitNOFILE"):
        read_env_file(path)
    assert read_env_file(path).values == {"A": "1"}
