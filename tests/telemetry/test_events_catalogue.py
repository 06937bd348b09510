"""The event classes, their page and the code agree."""

import ast
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import reconciler
from reconciler.telemetry.events import CATALOGUE
from reconciler.telemetry.events.page import family, markdown

PACKAGE = Path(reconciler.__file__).parent
PAGE = PACKAGE.parent / "docs" / "events.md"


def parsed():
    catalogue = PACKAGE / "telemetry" / "events"
    for path in sorted(PACKAGE.rglob("*.py")):
        if catalogue not in path.parents:
            yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def used_classes():
    """Return X for each ``events.X`` in the code."""
    return {
        node.attr
        for _, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "events"
    }


def test_the_page_is_generated():
    assert PAGE.read_text() == markdown(), (
        "run python -m reconciler.telemetry.events >docs/events.md"
    )


def test_the_module_prints_the_page():
    command = [sys.executable, "-m", "reconciler.telemetry.events"]
    assert subprocess.check_output(command, text=True, cwd=PACKAGE.parent) == markdown()


def test_every_event_is_on_the_page():
    on_page = re.findall(r"^\| `([a-z._]+)` \|", markdown(), re.MULTILINE)
    assert on_page == [event.event_name for event in CATALOGUE]


def test_event_names_are_unique():
    names = [event.event_name for event in CATALOGUE]
    assert len(set(names)) == len(names)


def test_event_names_are_those_of_the_classes():
    for event in CATALOGUE:
        assert re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", event.event_name), event
        words = re.split(r"[._]", event.event_name)
        assert event.__name__ == "".join(map(str.capitalize, words))


def test_event_meanings_are_sentences_for_a_table():
    for event in CATALOGUE:
        assert event.__doc__, event
        assert event.__doc__.endswith("."), event
        assert "|" not in event.__doc__, event


def test_events_of_one_family_stand_together():
    families = [name for name, _ in groupby(CATALOGUE, key=family)]
    assert len(families) == len(set(families))


def test_every_event_is_used():
    assert sorted({event.__name__ for event in CATALOGUE} - used_classes()) == []


def test_only_telemetry_logs_without_the_recorder():
    direct = [
        str(path)
        for path, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "get_logger"
    ]
    assert set(direct) == {"telemetry/logging.py", "telemetry/recorder.py"}
