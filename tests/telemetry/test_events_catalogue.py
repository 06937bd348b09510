"""The catalogue, its page and the code say the same."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import reconciler
from reconciler.telemetry.events import Event
from reconciler.telemetry.events.page import markdown

PACKAGE = Path(reconciler.__file__).parent
PAGE = PACKAGE.parent / "docs" / "events.md"
METHODS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
}
VARIABLE_LEVEL = {"LIBRARY_LOG"}


def parsed():
    catalogue = PACKAGE / "telemetry" / "events"
    for path in sorted(PACKAGE.rglob("*.py")):
        if catalogue not in path.parents:
            yield path.relative_to(PACKAGE.parent), ast.parse(path.read_text())


def used():
    """Each ``Event.NAME`` in the code: its place and NAME."""
    for path, tree in parsed():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id="Event"), attr=name) if name.isupper():
                    yield f"{path}:{node.lineno}", name


def calls():
    """Each call of a log method on something named log: its place, method and first argument."""
    for path, tree in parsed():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=on, attr=method), args=[first, *_]) if (
                    method in METHODS and re.search(r"log(ger)?(\(\))?$", ast.unparse(on))
                ):
                    yield f"{path}:{node.lineno}", method, first


def test_the_page_is_generated():
    assert PAGE.read_text() == markdown(), (
        "run python -m reconciler.telemetry.events >docs/events.md"
    )


def test_the_module_prints_the_page():
    command = [sys.executable, "-m", "reconciler.telemetry.events"]
    assert subprocess.check_output(command, text=True, cwd=PACKAGE.parent) == markdown()


def test_names_are_dotted_stable_words():
    for event in Event:
        assert re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", event), event
        assert event.name == event.upper().replace(".", "_")
        assert event.level in {"debug", "info", "warning", "error"}
        assert event.meaning.endswith("."), event
        assert "|" not in event.meaning
        fields = (*event.required, *event.optional)
        assert len(set(fields)) == len(fields), event


def test_a_family_stands_together():
    families = [event.partition(".")[0] for event in Event]
    starts = [
        name for name, before in zip(families, [None, *families], strict=False) if name != before
    ]
    assert len(starts) == len(set(starts))


def test_every_event_in_the_code_is_in_the_catalogue():
    unknown = [(place, name) for place, name in used() if name not in Event.__members__]
    assert unknown == []


def test_every_log_call_names_its_event_from_the_catalogue():
    literal = [
        (place, first.value) for place, _, first in calls() if isinstance(first, ast.Constant)
    ]
    assert literal == []


def test_every_log_call_has_the_level_of_its_event():
    wrong = [
        (place, method, first.attr)
        for place, method, first in calls()
        if isinstance(first, ast.Attribute)
        and first.attr in Event.__members__.keys() - VARIABLE_LEVEL
        and METHODS[method] != Event[first.attr].level
    ]
    assert wrong == []


def test_every_event_is_used():
    assert sorted(Event.__members__.keys() - {name for _, name in used()}) == []
