"""Env files: Docker's rules, and errors that repeat nothing of what may be a secret."""

from __future__ import annotations

import os

import pytest

from reconciler.core.errors import ManifestError
from reconciler.manifest import env_file


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
def test_lines(path, text, values):
    path.write_bytes(text.encode())
    assert env_file.read(path).values == values


def test_the_digest_is_of_the_values(path):
    def digest(text):
        path.write_text(text)
        return env_file.read(path).digest

    assert digest("A=1\nB=2\n") == digest("# comment\nB=2\nA=1") != digest("A=1\nB=3\n")
    assert len(digest("")) == 64


def test_values_are_not_shown(path):
    path.write_text("KEY=s3cret\n")
    assert "s3cret" not in repr(env_file.read(path))


@pytest.mark.parametrize(
    ("content", "complaints"),
    [
        (b"A=1\n=s3cret\n", ["2:1: a variable's name is missing: write NAME=value"]),
        (
            b"A s3cret=1\nB=1\nC s3cret\n",
            [f"{n}:1: a name holds no blanks: write NAME=value" for n in (1, 3)],
        ),
        (b"A=1\nB=\xff\n", ["2:3: not UTF-8 text"]),
        (b"A=s3cret\0\n", ["1:9: not a text file: it holds a NUL character"]),
        (b"A" * (2 << 20), ["1:1: larger than 1 MB, the most that is read"]),
    ],
)
def test_what_is_wrong_is_told_without_secrets(path, content, complaints):
    path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        env_file.read(path)
    assert str(error.value) == "\n".join(f"{path}:{complaint}" for complaint in complaints)
    assert "s3cret" not in str(error.value)


def test_what_is_not_there(path):
    with pytest.raises(ManifestError, match="does not exist"):
        env_file.read(path)


def test_a_pipe_does_not_hang(path):
    os.mkfifo(path)
    with pytest.raises(ManifestError, match="not a regular file"):
        env_file.read(path)
