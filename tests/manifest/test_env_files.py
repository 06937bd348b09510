"""Env files follow Docker's rules, and their errors contain no secrets."""

from __future__ import annotations

import os

import pytest

from reconciler.core.errors import ManifestError
from reconciler.manifest.env_files import read_env_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "llm.env"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1", {"A": "1"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("# A=1\n  # B=2\n\n \n", {}),
        ("  A=1\n", {"A": "1"}),
        ("A= x # y \n", {"A": " x # y "}),
        ("A=\"q\"\nB='r'\n", {"A": '"q"', "B": "'r'"}),
        ("A=b=c\n", {"A": "b=c"}),
        ("A=\n", {"A": ""}),
        ("HOME\nA=1\n", {"A": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=\u2028\x0b\n", {"A": "\u2028\x0b"}),
    ],
)
def test_lines_are_read_by_dockers_rules(path, text, values):
    path.write_bytes(text.encode())
    assert read_env_file(path).values == values


def test_digest_depends_on_the_values_only(path):
    def digest(text):
        path.write_text(text)
        return read_env_file(path).digest

    assert digest("A=1\nB=2\n") == digest("# comment\nB=2\nA=1") != digest("A=1\nB=3\n")
    assert len(digest("")) == 64


def test_repr_hides_the_values(path):
    path.write_text("KEY=s3cret\n")
    assert "s3cret" not in repr(read_env_file(path))


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (b"A=1\n=s3cret\n", ["2:1: the variable's name is missing: write NAME=value"]),
        (
            b"A s3cret=1\nB=1\nC s3cret\n",
            [f"{n}:1: the variable's name must not hold spaces: write NAME=value" for n in (1, 3)],
        ),
        (b"A=1\nB=\xff\n", ["2:3: not UTF-8 text"]),
        (b"A=s3cret\0\n", ["1:9: not a text file: it holds a NUL character"]),
        (b"A" * (2 << 20), ["1:1: larger than the limit of 1 MB"]),
    ],
)
def test_errors_contain_no_secrets(path, content, messages):
    path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        read_env_file(path)
    assert str(error.value) == "\n".join(f"{path}:{message}" for message in messages)
    assert "s3cret" not in str(error.value)


def test_missing_env_file_is_an_error(path):
    with pytest.raises(ManifestError, match="does not exist"):
        read_env_file(path)


def test_pipe_is_refused_without_hanging(path):
    os.mkfifo(path)
    with pytest.raises(ManifestError, match="not a regular file"):
        read_env_file(path)
