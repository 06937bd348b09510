from pathlib import Path

import pytest


@pytest.fixture
def desired(tmp_path: Path) -> Path:
    """Return the path of the desired file, which does not exist yet."""
    return tmp_path / "desired.yaml"
