import pytest

from scripts.words import check


@pytest.mark.parametrize(
    ("path", "text", "places"),
    [
        ("a.py", '"""It is told."""\n', [(1, 7, "is told")]),
        ("a.py", "x = 1  # it waits for\n# ever\n", [(1, 19, "for ever")]),
        ("a.py", 'x = f"{x} anew" "it goes " "on now"\n', [(1, 11, "anew"), (1, 21, "goes on")]),
        ("a.py", "def test_it_goes_on():\n    goes_on = anew\n", [(1, 13, "goes on")]),
        ("a.py", "for_ever = is_told(anew)\n", []),
        ("a.py", 'x["brake"] = "guard.brake" + f(""" brake """)\n', [(1, 36, "brake")]),
        ("a.md", "The `brake` is a brake\n", [(1, 18, "brake")]),
        ("a.md", "The heir\ngoes\non.\n", [(1, 5, "heir"), (2, 1, "goes on")]),
        ("a.yaml", "anew: brake  # anew\n", [(1, 16, "anew")]),
    ],
)
def test_words_to_avoid_are_found_where_they_are_prose(path, text, places):
    found = [(each.line, each.column, each.words) for each in check(path, text)]
    assert found == places
