"""What the README shows is what one gets."""

import re
from pathlib import Path

import pytest

from reconciler.manifest.loader import load
from scripts.image import TEST_IMAGE

README = Path(__file__).parent.parent.parent / "README.md"
ALL_WELL = {
    "alice": "RUNNING",
    "bob": "PAUSED",
    "carol": "STOPPED",
    "dave": "RUNNING",
    "pool-1": "RUNNING",
    "pool-2": "RUNNING",
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands():
    lines = "".join(blocks("console")).splitlines()
    return [line.removeprefix("$ reconciler ").split() for line in lines]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_file_it_shows_is_valid(text, tmp_path):
    path = tmp_path / "desired.yaml"
    path.write_text(text)
    assert load(path).diagnostics == ()


def test_every_command_it_shows_works(daemon):
    daemon.write(blocks("yaml")[0].replace("reconciler-demo:latest", TEST_IMAGE))
    daemon.start().wait_statuses(ALL_WELL)
    results = {" ".join(words): daemon.cli(*words) for words in commands()}
    assert len(results) >= 12
    assert {words: result.stderr for words, result in results.items() if result.returncode} == {}


def test_every_path_it_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_make_targets_it_names_exist():
    named = set(re.findall(r"make ([a-z-]+)", README.read_text()))
    targets = set(
        re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    )
    assert named - {"sandboxes"} <= targets
