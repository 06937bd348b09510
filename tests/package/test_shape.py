import pytest

from scripts.shape import measure, packages


def test_few_private_functions_are_used_once():
    """So that a reader reads top-down instead of jumping."""
    high = {name for name, shape in packages().items() if shape.share > 0.12}
    assert not high


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("def f():\n    _once()\n\ndef _once():\n    pass\n", ["_once"]),
        ("def f():\n    _twice(_twice())\n\ndef _twice(x=0):\n    pass\n", []),
        (
            "class A:\n  def f(self):\n    self._once()\n\n  def _once(self):\n    pass\n",
            ["_once"],
        ),
        ("@property\ndef _decorated():\n    pass\n\n_decorated\n", []),
        ("def public():\n    pass\n\npublic()\n", []),
    ],
)
def test_single_use_helpers_are_found(tmp_path, body, names):
    file = tmp_path / "module.py"
    file.write_text(body)
    shape = measure([file])
    assert [helper.name for helper in shape.helpers] == names
    assert (shape.files, shape.lines) == (1, body.count("\n"))
