from pathlib import Path

import pytest


@pytest.fixture
def desired(tmp_path: Path) -> Path:
    """Where the desired file is; it is not there yet."""
    return tmp_path / "desired.yaml"
