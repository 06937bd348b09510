"""Any desired file raises nothing, costs limited time and memory, and leaks no secret.

Time is this thread's CPU time, relative to a plain file in the same process; work is counted in
function calls. Neither depends on the machine or its load.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reconciler.core.spec import RecordSpec
from reconciler.manifest.loader import load
from tests.manifest.manifests import HEAD, loaded, messages

T = TypeVar("T")
EXAMPLE = Path(__file__).parents[2] / "config" / "desired.yaml"
# Multiples of the time for a thousand plain records. The worst of these files takes about 20.
MOST = 100
# Function calls for one plain record; 722 on Python 3.11.
A_RECORD = 1000


def plain(records: int) -> str:
    rows = [f"  s{i}: {{spec: web, env: {{N: n{i}}}, state: paused}}\n" for i in range(records)]
    return HEAD + "".join(rows)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return its result, and the CPU seconds of this thread."""
    began = time.thread_time()
    return work(), time.thread_time() - began


def calls(work: Callable[[], object]) -> int:
    """Return the number of function calls, C functions included."""
    count = 0

    def hear(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    former = sys.getprofile()
    sys.setprofile(hear)
    try:
        work()
    finally:
        sys.setprofile(former)
    return count


@pytest.fixture(scope="module")
def blink(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The CPU seconds for a thousand plain records on this machine."""
    path = tmp_path_factory.mktemp("plain") / "desired.yaml"
    path.write_text(plain(1000))
    return min(timed(lambda: load(path))[1] for _ in range(3))


def test_billion_laughs_are_refused_quickly(desired):
    lines = [f"  b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)]
    laughs = "version: 1\nspecs:\n  a: &a0 {image: x}\n" + "".join(lines)
    assert calls(lambda: loaded(desired, laughs)) < 10 * A_RECORD
    found = load(desired)
    assert found.fatal
    assert "counting each alias in full" in messages(found)[0]


@pytest.mark.parametrize(
    "content",
    [
        b"a" * 50_000_000,
        b"[" + b"1," * 2_000_000 + b"]",
        b":" * 4_000_000,
        b"- " * 2_000_000,
        b"x: {" * 3 + b'"' * 3_900_000,
        HEAD.encode() + b"".join(b"  s%d: {spec: web, replicas: 10000}\n" % i for i in range(1000)),
        b"version: 1\nspecs: {web: {image: b, env: {%s}}}\nsandboxes: {%s}"
        % (
            b",".join(b"K%d: v" % i for i in range(5000)),
            b",".join(b"s%d: {spec: web, init: true}" % i for i in range(5000)),
        ),
    ],
    ids=["50MB", "list", "colons", "dashes", "quotes", "replicas", "wide spec"],
)
def test_time_and_memory_are_bounded(desired, blink, content):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, took = timed(lambda: loaded(desired, content))
    assert took < MOST * blink
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert found.fatal


def test_messages_contain_no_secrets(desired):
    shapes = [
        "{K: 0x5ec2e7}",
        "{K: [s3cret]}",
        "[K=s3cret]",
        "s3cret",
        "{K: {a: s3cret}}",
        "{K: !!int s3cret}",
    ]
    for shape in shapes:
        found = loaded(desired, HEAD + f"  a: {{spec: web, env: {shape}}}\n")
        assert found.diagnostics
        text = "\n".join(messages(found))
        assert "s3cret" not in text
        assert str(0x5EC2E7) not in text


def check_anything(desired: Path, blink: float, content: bytes) -> None:
    found, took = timed(lambda: loaded(desired, content))
    assert took < MOST / 2 * blink
    for diagnostic in found.diagnostics:
        assert str(diagnostic).isprintable()
        assert diagnostic.line >= 1
        assert diagnostic.column >= 1
    assert found.diagnostics or not found.held
    assert not (found.fatal and found.records)


anything = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@given(content=st.binary(max_size=200))
@example(content=b"\xff\xfe")
@anything
def test_arbitrary_bytes(desired, blink, content):
    check_anything(desired, blink, content)


_INSERTS = st.sampled_from(
    b"\t,*a,&a ,[,{,],},',\",\n,  ,- ,: ,? ,!!int ,|,>,~,0,\0,\xff,<<: ,#,---\n,%,null".split(b","),
)


@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), _INSERTS), max_size=5))
@anything
def test_mutations_of_a_valid_file(desired, blink, edits):
    content = EXAMPLE.read_bytes()
    for place, removed, inserted in edits:
        at = int(place * len(content))
        content = content[:at] + inserted + content[at + removed :]
    check_anything(desired, blink, content)


_VALUES = st.recursive(
    st.sampled_from(
        ["1", "x", "~", "true", '"s"', "1.5", "5s", "4g", "[]", "{}", "all", "/p", "-1"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(
            st.sampled_from(["path", "kind", "name", "container_port", "nofile", "soft", "A", "1"]),
            inner,
            max_size=2,
        ).map(lambda items: "{" + ", ".join(f"{k}: {v}" for k, v in items.items()) + "}"),
    ),
    max_leaves=5,
)
_FIELDS = st.sampled_from(
    sorted({*RecordSpec.model_fields} - {"spec"}),
)


@given(fields=st.dictionaries(_FIELDS, _VALUES, max_size=3))
@anything
def test_arbitrary_values_in_every_field(desired, blink, fields):
    said = "".join(f", {key}: {value}" for key, value in fields.items())
    content = HEAD + f"  a: {{spec: web{said}}}\n  b: {{spec: web}}\n"
    check_anything(desired, blink, content.encode())
    found = load(desired)
    assert "b" in found.records
    assert found.is_held("a") == bool(found.diagnostics)


def test_cost_per_record_is_constant(desired, blink):
    costs = {}
    for records in (100, 1000):
        desired.write_text(plain(records))
        assert len(load(desired).records) == records
        costs[records] = calls(lambda: load(desired)) / records
    print(f"1,000 records with overrides: {blink * 1000:.0f} ms, {costs[1000]:.0f} calls each")
    assert costs[1000] < A_RECORD
    assert costs[1000] < 1.1 * costs[100]


def test_only_first_bad_references_get_a_hint(tmp_path: Path) -> None:
    specs = "".join(f"  {'x' * 50}{i}: {{image: a}}\n" for i in range(1500))
    bad = "".join(f"  s{i}: {{spec: {'x' * 50}y{i}}}\n" for i in range(200))
    text = f"version: 1\nspecs:\n{specs}sandboxes:\n{bad}"
    found = messages(loaded(tmp_path / "x.yaml", text))
    hints = [line for line in found if "did you mean" in line]
    assert len(found) == 200
    assert len(hints) == 20


def test_replicas_are_counted_with_their_whole_spec(tmp_path: Path) -> None:
    env = "".join(f"      V{i}: x\n" for i in range(1500))
    text = f"version: 1\nspecs:\n  s:\n    image: a\n    env:\n{env}sandboxes:\n"
    file = tmp_path / "x.yaml"
    assert messages(loaded(file, f"{text}  pool: {{spec: s, replicas: 1000}}\n")) == []
    (line,) = messages(loaded(file, f"{text}  pool: {{spec: s, replicas: 3000}}\n"))
    assert "all records come to more than 4000000 values" in line
