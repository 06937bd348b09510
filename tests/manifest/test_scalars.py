"""Scalars and documents have the values that a strict YAML 1.2 reader gives them."""

from __future__ import annotations

import math

import pytest
import yaml12
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reconciler.core.errors import ManifestError
from reconciler.manifest.yaml12.composer import Budget, compose
from reconciler.manifest.yaml12.scalars import resolve, resolve_plain


def value_of(text: str):
    composed = compose(text, "f.yaml", Budget())
    if composed.problems:
        raise ManifestError(composed.problems)
    return composed.root.data if composed.root else None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("012", 12),
        ("-012", -12),
        ("+7", 7),
        ("0o14", 12),
        ("0O14", "0O14"),
        ("-0o14", "-0o14"),
        ("0x1f", 31),
        ("0X1F", "0X1F"),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        (".", "."),
        ("1e3", 1000.0),
        ("1e", "1e"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("+.inf", math.inf),
        ("inf", "inf"),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("", None),
        ("true", True),
        ("True", True),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("false", False),
        ("=", "="),
        ("<<", "<<"),
        ("٣", "٣"),
    ],
)
def test_plain_scalars(text, value):
    found = resolve_plain(text)
    assert (type(found), found) == (type(value), value)


def test_nan():
    assert math.isnan(resolve_plain(".nan"))


@pytest.mark.parametrize(
    "text", ["9" * 30, "0x" + "f" * 17, "9" * 5000, "1e999", "9" * 5000 + ".0"]
)
def test_number_out_of_range_is_refused(text):
    with pytest.raises(ValueError, match="too large"):
        resolve_plain(text)


@pytest.mark.parametrize(
    ("tag", "text", "value"),
    [
        ("str", "1", "1"),
        ("int", "012", 12),
        ("float", "1", 1.0),
        ("bool", "True", True),
        ("null", "", None),
    ],
)
def test_tags_set_the_type(tag, text, value):
    found = resolve(text, f"tag:yaml.org,2002:{tag}", plain=True)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("tag", "text"),
    [("int", "x"), ("float", "x"), ("bool", "yes"), ("null", "x"), ("binary", "x"), ("set", "")],
)
def test_tag_that_does_not_fit_is_refused(tag, text):
    with pytest.raises(ValueError, match=rf"!!{tag}|unknown tag"):
        resolve(text, f"tag:yaml.org,2002:{tag}", plain=True)


def test_quoted_scalar_is_a_string():
    assert value_of("['1', \"true\", ! 5]") == ["1", "true", "5"]


def comparable(value):
    """Return a form that is equal for equal values of equal type, without final line breaks.

    At the end of a file without a line break the reference adds one to a block scalar.
    """
    if isinstance(value, dict):
        return [(comparable(key), comparable(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return value.rstrip("\n") if isinstance(value, str) else repr(value)


@given(st.text("0123456789.+-eExXoO:_aAbBfFnNtTruUlLsSiI~", max_size=8))
@example("0o7")
@example("-.inf")
def test_plain_scalars_agree_with_the_reference(text):
    if text.startswith(("- ", ": ")) or text in {"-", ":", "---"} or text.endswith(":"):
        return
    try:
        expected = yaml12.parse_yaml(f"[{text}]")
    except ValueError:
        return
    try:
        found = value_of(f"[{text}]")
    except ManifestError:
        return
    assert comparable(found) == comparable(expected)


_PIECES = (
    *("a", "b: ", "- ", "? ", ": ", ":", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ", ","),
    *("'", '"', "# c", " #", "#", "&x ", "*x", "1", "012", "no", "true", "~", "null", "\t", " "),
    *("|\n  t", "|-\n  t", ">\n  t", "---\n", "...\n", "\\n", "\\x41", "\\", "a: 1\n", "-", "1:30"),
    *("x: {a: b}\n", "- a\n", "é", "\r\n", "<<: ", "!!str ", "=", ".inf"),
)


# The reference refuses these although YAML 1.2 allows them: a tab after the colon of a key, and a
# comment below a block scalar with an indentation indicator.
_FAULTS = ("valid YAML whitespace", "wrongly indented line in block scalar")


@given(st.lists(st.sampled_from(_PIECES), max_size=10).map("".join))
@settings(max_examples=1500, deadline=None)
@example('""#a')
@example("[a]#a")
@example("a:\n  b:\n  |\n")
@example("-\n\n|2\n")
@example("a: |#x\n")
@example("{# c\n}")
@example("[[# c\n]]")
@example("[a,# c\n]")
@example("{a: [b] # c\n ,# c\n}")
@example("{a: ,# c\n}")
@example("{-}")
@example("[-,a]")
@example("{?}")
@example("[:]")
def test_accepted_documents_agree_with_the_reference(text):
    """Our reader may refuse more, but never reads another value."""
    try:
        found = value_of(text)
    except ManifestError:
        return
    if isinstance(found, str):
        return  # not a desired file, and the reference wraps a lone tagged scalar
    assert comparable(found) in (comparable(expected) for expected in reference(text))


def reference(text: str) -> list:
    """Return the reference's values: none if it refuses, ours if it refuses valid YAML."""
    try:
        return [yaml12.parse_yaml(text)]
    except ValueError as error:
        wrongly = any(fault in str(error) for fault in _FAULTS)
        return [value_of(text)] if wrongly else []


def test_positions_count_characters_from_one():
    root = compose('é: {ü: "x"}\r\nb: [1,\r\n  2]\r\n', "f.yaml", Budget()).root
    assert root is not None
    inner = root.child("é")
    assert (inner.keys["ü"].line, inner.keys["ü"].column) == (1, 5)
    assert (root.child("b").child(1).line, root.child("b").child(1).column) == (2 + 1, 3)
