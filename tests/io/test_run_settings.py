"""run.toml and files that appear whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile, check_writable, write_bytes
from pyposeext.io.run_settings import to_toml, write_run_settings

tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")


def test_settings_come_back(tmp_path):
    settings = {
        "text": 'a "quoted"\nline \\ with ü',
        "whole": 3,
        "real": 1e-7,
        "yes": True,
        "names": ["a", "b"],
        "table": {"inner": {"path": Path("/somewhere"), "off": None}, "size": (3, 4)},
        "a.b c": {"x": math.inf},
    }
    write_run_settings(tmp_path / "run.toml", settings)
    read = tomllib.loads((tmp_path / "run.toml").read_text())
    assert read == {
        **settings,
        "table": {"inner": {"path": "/somewhere", "off": "none"}, "size": [3, 4]},
    }


def test_no_settings_are_valid_too():
    assert tomllib.loads(to_toml({})) == {}


def test_a_pending_file_appears_with_commit_only(tmp_path):
    (tmp_path / "a").write_text("old")
    pending = PendingFile(tmp_path / "a")
    pending.temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "old"
    pending.commit()
    pending.discard()
    assert (tmp_path / "a").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", ["file/inside", "folder"])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot (make|write)"):
        write_bytes(tmp_path / place, b"")


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert list(check_writable(tmp_path / "a" / "b").iterdir()) == []
