"""Log lines contain no secret and are bounded."""

import json
import time
from enum import Enum, IntEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.telemetry.redact import (
    MASK,
    Redactor,
    describe_error,
    is_amount,
    is_secret_name,
    is_secret_variable,
    sanitizer,
)

SECRET = "4fQ9cXz7LkR2vTn8"


class Colour(str, Enum):  # noqa: UP042 - the older way, too, is its value
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Unprintable:
    def __str__(self):
        raise RuntimeError


def sanitized(redact=None, **fields):
    return sanitizer(redact or Redactor())(None, "info", fields)


@pytest.fixture
def redact():
    made = Redactor()
    made.register(SECRET)
    return made


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"GET /?key={SECRET}&x=1",
        [f"a{SECRET}b"],
        {"deep": [{"er": (SECRET,)}]},
        {SECRET: 1},
        SECRET.encode(),
        {SECRET},
        RuntimeError(f"bad {SECRET}"),
        Path("/x") / SECRET,
    ],
)
def test_a_registered_secret_is_replaced_everywhere(redact, value):
    text = json.dumps(sanitized(redact, field=value))
    assert SECRET not in text
    assert MASK in text


def test_quoted_forms_of_a_secret_are_replaced():
    redact = Redactor()
    redact.register('p/ss "w"')
    assert redact.clean("x p%2Fss%20%22w%22 y") == "x *** y"
    assert redact.clean(json.dumps({"v": 'p/ss "w"'})) == '{"v": "***"}'


def test_a_secret_inside_a_longer_one_leaves_no_rest():
    redact = Redactor()
    redact.register("abcdef")
    redact.register("xx-abcdef-yy")
    assert redact.clean("xx-abcdef-yy abcdef") == "*** ***"


PEM = "-----BEGIN KEY-----\nMIIEvgIBADANBgkq\nhkiG9w0BAQEFAASC\nend\n-----END KEY-----\n"


def test_a_secret_of_several_lines_is_redacted_by_line():
    redact = Redactor()
    redact.register(PEM)
    assert redact.clean(PEM) == "***"
    assert redact.clean("MIIEvgIBADANBgkq") == MASK
    assert redact.clean("x hkiG9w0BAQEFAASC\r\ny") == "x ***\\r\ny"
    redact.forget(PEM)
    assert redact.clean("MIIEvgIBADANBgkq") == "MIIEvgIBADANBgkq"


@pytest.mark.parametrize("name", ["MAX_TOKENS", "TOKEN_TTL_SECONDS", "token-limit", "SECRET_AGE"])
def test_some_numbers_are_amounts(name):
    assert is_amount(name)


@pytest.mark.parametrize("name", ["ADMIN_PASSWORD", "PIN_SECRET", "API_TOKEN", "KEY"])
def test_other_numbers_are_secrets(name):
    assert not is_amount(name)


@given(
    st.lists(st.text("abcx-", min_size=6, max_size=9), max_size=8, unique=True),
    st.text("abcx- ", max_size=60),
)
def test_no_secret_is_left_in_a_text(secrets, text):
    redact = Redactor()
    redact.register(*secrets)
    shown = redact.clean(text)
    assert not [secret for secret in secrets if secret in shown]
    redact.forget(*secrets)
    assert redact.clean(text) == text


def test_of_secrets_with_one_beginning_the_longest_matches():
    redact = Redactor()
    redact.register("sk-ant-1", "sk-ant-22", "sk-ant-333")
    redact.forget("sk-ant-22")
    assert redact.clean("sk-ant-1 sk-ant-22 sk-ant-333") == "*** sk-ant-22 ***"


def test_an_answer_is_redacted_except_a_requested_key(redact):
    answer = {"rows": [{"reason": f"a {SECRET}\x1b", "restarts": 2, "session_api_key": SECRET}]}
    cleaned = {"reason": "a ***\\x1b", "restarts": 2, "session_api_key": SECRET}
    assert redact.clean_answer(answer) == {"rows": [cleaned]}


def test_short_secrets_would_match_by_chance():
    redact = Redactor()
    redact.register("")
    redact.register("true")
    assert redact.clean("it is true") == "it is true"


def test_a_secret_is_forgotten_with_its_last_registration(redact):
    redact.register(SECRET)
    redact.forget(SECRET)
    assert redact.clean(SECRET) == MASK
    redact.forget(SECRET)
    redact.forget(SECRET)
    assert redact.clean(SECRET) == SECRET


@given(
    before=st.integers(0, 120),
    repeat=st.integers(1, 60),
    limit=st.integers(10, 100),
    gap=st.text("-.", max_size=3),
)
def test_the_cut_never_shows_a_part_of_a_secret(before, repeat, limit, gap):
    redact = Redactor()
    redact.register(SECRET)
    shown = redact.clean("-" * before + (SECRET + gap) * repeat, limit)
    assert SECRET[:2] not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OH_SESSION_API_KEYS_0=abc x", "OH_SESSION_API_KEYS_0=*** x"),
        ("LLM_API_KEY=sk-1", "LLM_API_KEY=***"),
        ("/sockets?session_api_key=abc&a=1", "/sockets?session_api_key=***&a=1"),
        ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: Bearer ***"),
        ("https://user:pw@host/x", "https://***@host/x"),
        ("invalid token: found '='", "invalid token: found '='"),
        ("http://127.0.0.1:8000/health", "http://127.0.0.1:8000/health"),
    ],
)
def test_unregistered_secrets_are_found_by_their_form(text, expected):
    assert Redactor().clean(text) == expected


@pytest.mark.parametrize(
    "name",
    ["session_key", "SESSION-KEY", "Authorization", "X-Session-API-Key", "llm_api_key", "password"],
)
def test_fields_with_secret_names_are_never_shown(name):
    assert is_secret_name(name)
    assert sanitized(**{name: "x"}) == {name: MASK}
    assert sanitized(env={name: ["x"]}) == {"env": {name: MASK}}


@pytest.mark.parametrize("name", ["key", "sandbox", "keys", "author", "passes"])
def test_fields_with_other_names_are_shown(name):
    assert sanitized(**{name: "x"}) == {name: "x"}


@pytest.mark.parametrize("name", ["LLM_API_KEY", "SIGNING_KEY", "db-password", "GITHUB_PAT", "DSN"])
def test_variables_with_such_names_hold_secrets(name):
    assert is_secret_variable(name)


@pytest.mark.parametrize("name", ["KEYBOARD", "PATH", "COMPASS", "COLOUR", "MONKEY"])
def test_other_variables_hold_none(name):
    assert not is_secret_variable(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (True, True),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Colour.RED, "red"),
        (Number.ONE, 1),
        (b"\xff", "\ufffd"),
        (Unprintable(), "<unprintable Unprintable>"),
        ({1: None}, {"1": None}),
        ((1, 2), [1, 2]),
    ],
)
def test_everything_becomes_plain_data(value, expected):
    result = sanitized(field=value)["field"]
    assert result == expected
    json.dumps(result, allow_nan=False)


def test_unknown_fields_are_left_out():
    assert sanitized(cause=None, sandbox="a") == {"sandbox": "a"}


def test_a_megabyte_becomes_four_kilobytes():
    result = sanitized(line="é" * 1_000_000)["line"]
    assert len(result) < 4200
    assert result.endswith("… (+995904)")


def test_nested_floods_are_bounded():
    wide = {f"k{n}": ["x" * 100_000] * 1000 for n in range(1000)}
    assert len(json.dumps(sanitized(wide=wide))) < 2_000_000
    deep: list = []
    deep.append(deep)
    assert "…" in json.dumps(sanitized(deep=deep), ensure_ascii=False)


def test_many_secrets_and_long_lines_stay_cheap():
    redact = Redactor()
    for n in range(500):
        redact.register(f"{n:043d}")
    begin = time.process_time()
    for text in ("token" * 200_000, "a" * 1_000_000, "x=" * 500_000, "bearer " * 100_000, "://a:"):
        redact.clean(text)
    assert time.process_time() - begin < 0.5


def failure():
    error = ValueError("cannot read")
    error.__cause__ = PermissionError(13, "denied")
    return error


def test_an_error_is_described_with_its_causes():
    assert (
        describe_error(failure()) == "ValueError: cannot read <- PermissionError: [Errno 13] denied"
    )
    assert describe_error(TimeoutError()) == "TimeoutError"
    group = describe_error(ExceptionGroup("two", [KeyError("a"), failure()]))
    assert "KeyError: 'a'; ValueError: cannot read <-" in group


def test_a_cycle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert describe_error(first) == "ValueError: a <- ValueError: b"
