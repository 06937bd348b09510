"""Errors in the desired file: their message, their position, and what they hold back."""

# ruff: noqa: E501 - a table has one line per row

from __future__ import annotations

import pytest

from reconciler.telemetry.redact import redactor
from tests.manifest.manifests import HEAD, loaded, messages

RECORDS = [
    ("spec: ^wbe", 'no such spec: "wbe": did you mean "web"?'),
    ("spec: web, ^imgae: x", 'unknown key "imgae": did you mean "image"?'),
    ("spec: web, env: {P: ^8000}", "must be a string: write it in quotes"),
    ("spec: web, env: {P: ^}", 'must be a string; an empty one is ""'),
    ("spec: web, command: [^8000]", 'must be a string: write it in quotes: "8000"'),
    ("spec: web, command: [^true]", 'must be a string: write it in quotes: "true"'),
    ("spec: web, command: ^ls", 'must be a list: "- item" lines, or [item, item]'),
    ("spec: web, env: ^[A=x]", 'must be a mapping: "key: value" lines, or {key: value}'),
    ("spec: web, state: ^pausd", 'must be one of running, paused, stopped: did you mean "paused"?'),
    ("spec: web, init: ^no", "must be true or false: write false"),
    ("spec: web, stop_timeout: ^3", "must be a duration such as 500ms, 30s, 5m, 1h or 7d"),
    ("spec: web, resources: {memory: ^4q}", "must be a size such as 512m or 4g, or a whole number of bytes"),
    ("spec: web, resources: {cpus: ^true}", "must be a number"),
    ("spec: web, resources: {pids: ^1.5}", "must be a whole number"),
    ("spec: web, resources: {pids: ^0}", "must be at least 1"),
    ("spec: web, resources: {gpus: ^0}", 'must be "all", a number of GPUs (1 or more), or a list of their ids'),
    ("spec: web, resources: {gpus: [^0]}", 'must be a string: write it in quotes: "0"'),
    ("spec: web, resources: {ulimits: {^n: {soft: 1}}}", 'the key "hard" is missing'),
    ("spec: web, resources: {ulimits: {n: ^x}}", "must be a whole number (-1: unlimited), or {soft: NUMBER, hard: NUMBER}"),
    ("spec: web, ports: [^{name: A}]", 'the key "container_port" is missing'),
    ("spec: web, ports: [{name: ^1-x, container_port: 1}]", "not a valid variable name: begin with a letter or _, then letters, digits, _ . -"),
    ("spec: web, ports: [{name: B, container_port: ^99999}]", "must be at most 65535"),
    ("spec: web, ports: ^[{name: A, container_port: 1}, {name: A, container_port: 2}]", "ports: each name may be used once"),
    ("spec: web, ^workspace: {retain: 1d}", 'the key "path" is missing'),
    ("spec: web, workspace: {path: ^w}", "must be an absolute path, which begins with /"),
    ("spec: web, health: ^{port: B}", "health: port 'B' is not one of A"),
    ("spec: web, health: ^{kind: exec}", "an exec probe needs a command, and only an exec probe has one"),
    ("spec: web, health: {^intervall: 1s}", 'unknown key "intervall": did you mean "interval"?'),
    ("spec: web, replicas: ^-1", "must be at least 0"),
    ("spec: web, replicas: ^three", "must be a whole number"),
    ("spec: web, ^spec: web", '"spec" is already given in line 5'),
    ("spec: web, env: {^<<: {A: b}}", 'the merge key "<<" is not part of YAML 1.2: use a spec, and overrides in the record'),
    ("spec: web, ^5: x", 'a key must be a string: write it in quotes: "5"'),
    ("spec: web, ? ^[a] : x", "a key must be a string, not a list or a mapping"),
    ("spec: web, user: ^!!binary x", "unknown tag: put a value that begins with ! in quotes, or use one of the tags !!str, !!int, !!float, !!bool, !!null"),
    ("spec: web, env: ^!!set {A: x}", "this tag (the word that begins with !) does not fit: remove it"),
    ("spec: web, env: ^{OH_SESSION_API_KEYS_0: x}", "env: OH_SESSION_API_KEYS_0 is made and kept by the reconciler"),
]  # fmt: skip


CANARY, DIGITS = "canaryword7731", "918273645546372819"
SECRETS = [
    f"env: {{API_KEY: *{CANARY}}}",
    f"env: {{API_KEY: !{CANARY} x}}",
    f"env: {{API_KEY: {DIGITS}}}",
    f"env: [API_KEY={CANARY}]",
    f"env: {{API_KEY={CANARY}: }}",
    f"env: {{API_KEY={CANARY}: a, API_KEY={CANARY}: b}}",
    f'env: {{API_KEY: "{CANARY}\\q"}}',
    f'env: {{API_KEY: "{CANARY}',
    f"env: {{API_KEY: %{CANARY}}}",
    f"env: {{API_KEY: |{CANARY}",
    f"env: {CANARY}",
    f"API_KEY={CANARY}: 1",
    f"command: [run, --password, {DIGITS}]",
    f"health: {{headers: {{Authorization: {DIGITS}}}}}",
    f"health: {{headers: {{Authorization: [{CANARY}]}}}}",
    f"state: {CANARY}",
]


@pytest.mark.parametrize("line", SECRETS)
def test_no_error_repeats_a_value(desired, line):
    found = loaded(desired, f"{HEAD}  a:\n    spec: web\n    {line}\n")
    said = [redactor.clean(str(diagnostic)) for diagnostic in found.diagnostics]
    assert said
    assert not [text for text in said if CANARY in text or DIGITS in text]


@pytest.mark.parametrize(("record", "message"), RECORDS)
def test_bad_record_holds_back_only_itself(desired, record, message):
    """The ^ marks the expected position."""
    line = f"  a: {{{record}}}\n"
    found = loaded(desired, HEAD + line.replace("^", "") + "  b: {spec: web}\n")
    assert messages(found) == [f"5:{line.index('^') + 1}: {message}"]
    assert not found.fatal
    assert list(found.records) == ["b"]
    assert found.held["a"] == found.diagnostics
    assert found.is_held("a")
    assert found.is_held("a-3"), "it may have had replicas"
    assert not found.is_held("b")
    assert not found.is_held("a-b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  é: {spec: web}", "5:3: not a valid name: begin with a letter or digit, then letters, digits, _ . - (63 at most)"),
        ("  12: {spec: web}", '5:3: a key must be a string: write it in quotes: "12"'),
        ("  a: {state: running}", '5:3: the key "spec" is missing'),
        ("  a:", '5:5: a sandbox must be a mapping that names its spec: "{spec: NAME}"'),
        ("  a: web", '5:6: a sandbox must be a mapping that names its spec: "{spec: NAME}"'),
        (f"  {'n' * 62}: {{spec: web, replicas: 1}}", f'5:3: the name of its last replica, "{"n" * 62}-1", is too long'),
    ],
)  # fmt: skip
def test_bad_name_or_shape_holds_back_only_itself(desired, line, message):
    found = loaded(desired, HEAD + f"{line}\n  b: {{spec: web}}\n")
    assert messages(found) == [message]
    assert list(found.records) == ["b"]
    assert len(found.held) == 1


FATAL = [
    ("sandboxes: {}\n", '1:1: the key "version" is missing: write "version: 1" at the top'),
    ("version: 2\n", "1:10: must be 1, the only known version"),
    ('version: "1"\n', "1:10: must be 1, the only known version"),
    ("version: 1.0\n", "1:10: must be 1, the only known version"),
    ("version: true\n", "1:10: must be 1, the only known version"),
    ("version: 1\nsandboxs: {}\n", '2:1: unknown key "sandboxs": did you mean "sandboxes"?'),
    ("version: 1\nsandboxes: [a]\n", "2:12: must be a mapping of names"),
    ("- a\n", '1:1: not a desired file: write "version: 1" and below it specs: and sandboxes:'),
    (HEAD + "  a: {spec: web}\n  a: {spec: web}\n", '6:3: "a" is already given in line 5'),
    ("version: 1\nspecs: {a: [\n", "3:1: a value is expected here"),
    ("version: 1\nspecs:\n\ta: b\n", "3:1: a tab is used for indentation: use spaces"),
    ("version: 1\nspecs: {a: {image: *x}}\n", "2:20: a value that begins with * is an alias, and no anchor has its name: put it in quotes"),
    ("version: 1\nspecs: &x {a: *x}\n", "2:15: this alias stands inside the value that it refers to"),
    ("version: 1\n---\nversion: 1\n", "2:1: a second document begins here: a file holds only one"),
    ("%YAML 1.1\n---\nversion: 1\n", "1:1: %YAML 1.1: files are read as YAML 1.2; remove this"),
    ("version: 1\nx: @a\n", "2:4: a value cannot begin with @: put it in quotes"),
    ("version: 1\nx: a: b\n", '2:5: a ":" is not expected here: check the indentation, or put the text in quotes'),
    ("version: 1\nspecs:\n  a: 'x\n", "4:1: a text in quotes is not closed (in the value that begins in line 3)"),
    ("version: 1\nx: \x07\n", "2:4: the character U+0007 is not allowed here: escape it in double quotes"),
    ("version: 1\nx: \u2028\n", "2:4: the character U+2028 is not allowed here: escape it in double quotes"),
    (b"version: 1\nx: \xff\n", "2:4: not UTF-8 text"),
    (b"version: 1\nx: \0\n", "2:4: not a text file: it holds a NUL character"),
    ("version: 1\n".encode("utf-16"), "1:1: UTF-16 or UTF-32 text: save the file as UTF-8"),
    ("version: 1\n".encode("utf-32"), "1:1: UTF-16 or UTF-32 text: save the file as UTF-8"),
    (b"#" * (5 << 20), "1:1: larger than the limit of 4 MB"),
    ("[" * 100_000, "1:52: nested deeper than 50 levels"),
    ("version: 1\nx: 'a'#b\n", "2:4: a comment needs a space before its #"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FATAL, ids=[c[-1][:40] for c in FATAL])
def test_unparseable_file_declares_nothing(desired, content, message):
    found = loaded(desired, content)
    assert message in messages(found)
    assert found.fatal
    assert not found.records
