"""Every example in the README works."""

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
def test_every_yaml_example_is_valid(text, tmp_path):
    path = tmp_path / "desired.yaml"
    path.write_text(text)
    assert load(path).diagnostics == ()


def test_every_command_example_works(daemon):
    daemon.write(blocks("yaml")[0].replace("reconciler-demo:latest", TEST_IMAGE))
    daemon.start().wait_statuses(ALL_WELL)
    results = {" ".join(words): daemon.cli(*words) for words in commands()}
    assert len(results) >= 12
    assert {words: result.stderr for words, result in results.items() if result.returncode} == {}


def test_every_link_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_every_promise_names_an_existing_test():
    text = README.read_text()
    rows = re.findall(r"^\| (?!promise|---)(.+?) \| (`tests/.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 15
    assert len(rows) == len(re.findall(r"^\| .*`tests/", text, re.MULTILINE))
    named = [proof.split("::") for _, proofs in rows for proof in re.findall(r"`([^`]+)`", proofs)]
    missing = [
        f"{path}::{test}"
        for path, test in named
        if f"def {test}(" not in (README.parent / path).read_text()
    ]
    assert missing == []


def test_every_make_target_exists():
    named = set(re.findall(r"make ([a-z-]+)", README.read_text()))
    targets = set(
        re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    )
    assert named - {"sandboxes"} <= targets
