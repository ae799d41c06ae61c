"""Fixtures every test shares: data outside the repository, and one seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of weights: what the user has fetched changes no result."""
    monkeypatch.setenv("PYPOSEEXT_CACHE", str(tmp_path_factory.getbasetemp() / "no_cache"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights that the test may fill."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("PYPOSEEXT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real clips and labels, or a skip: the repository holds none of them."""
    folder = os.environ.get("PYPOSEEXT_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PYPOSEEXT_TEST_DATA names no folder: real data is not part of the repository")
    return Path(folder)
