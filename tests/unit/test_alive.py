"""The sign of life of processes that have no port."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shared import alive, settings
from shared.alive import ALIVE_EVERY, say_alive


@pytest.fixture(autouse=True)
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files, where nobody said anything yet."""
    monkeypatch.setattr(alive, "_said", {})
    monkeypatch.setattr(settings, "_chosen", [replace(settings.Settings(), var_dir=tmp_path / "var")])
    return tmp_path / "var"


def test_the_file_is_made_and_touched_again(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own; within a moment it is left alone, so that a busy loop costs nothing."""
    say_alive("beat")
    file = var / "alive" / "beat"
    os.utime(file, (1, 1))
    say_alive("beat")
    assert file.stat().st_mtime == 1
    later = time.monotonic() + ALIVE_EVERY
    monkeypatch.setattr(alive.time, "monotonic", lambda: later)
    say_alive("beat")
    assert file.stat().st_mtime > 1
    assert [path.name for path in file.parent.iterdir()] == ["beat"]


def test_a_folder_that_cannot_be_written_ends_nothing(var: Path) -> None:
    """Nobody can watch then; the work goes on."""
    var.touch()  # a file where the folder should be
    say_alive("beat")
    assert var.is_file()
