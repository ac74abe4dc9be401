"""The README's table of variables is what the settings read, name by name and default by default."""

import re
from pathlib import Path
from typing import Any

import pytest

from shared import settings
from tests.support import variables_of_the_settings

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def variables() -> dict[str, Any]:
    """Every variable that the settings read, with its default."""
    return variables_of_the_settings()


@pytest.fixture
def rows() -> dict[str, str]:
    """The table of the README: a variable's cell for the default, by its name."""
    section = README.read_text().partition("## Environment variables\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))


def test_the_readme_lists_exactly_the_variables_that_are_read(variables: dict[str, Any], rows: dict[str, str]) -> None:
    """None is missing, and none is left of an earlier version."""
    assert sorted(rows) == sorted(variables)


def test_the_readme_tells_each_literal_default(variables: dict[str, Any], rows: dict[str, str]) -> None:
    """A default in code style is the very value; a default in words stands for one that is not a plain value."""
    told = {name: cell.strip("`") for name, cell in rows.items() if cell.startswith("`")}
    assert told == {name: str(variables[name]) for name in told}
    plain = {name for name, default in variables.items() if default and not str(default).startswith(settings.MEMORY)}
    assert plain == set(told)
