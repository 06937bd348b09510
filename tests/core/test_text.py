"""Untrusted text cannot control a terminal or change how a line reads."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.text import inert, inert_lines

ANY_TEXT = st.text(st.characters(codec=None, categories=None))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größe 日本 😀", "größe 日本 😀"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]52;c;AAAA\x07", "\\x1b]52;c;AAAA\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb", "a\\rb"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202eexe.txt", "\\u202eexe.txt"),
        ("a\u2028b", "a\\u2028b"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\ud83d", "\\ud83d"),
        (b"\xff\x1b".decode(errors="surrogateescape"), "\\xff\\x1b"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_unsafe_characters_are_escaped(text, shown):
    assert inert(text) == shown


def test_lines_keep_their_breaks_and_tabs():
    assert inert_lines("a\n\tb\x1b\r\n") == "a\n\tb\\x1b\\r\n"


@given(ANY_TEXT)
def test_no_control_or_override_is_left(text):
    for shown in (inert(text), inert_lines(text).replace("\n", "").replace("\t", "")):
        assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
        assert not {unicodedata.bidirectional(c) for c in shown} & {
            *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        }
        shown.encode()


@given(ANY_TEXT)
def test_inert_text_is_unchanged(text):
    assert inert(inert(text)) == inert(text)
