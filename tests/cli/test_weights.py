"""`pyposeext weights`: what it prints, and one sentence for every wrong input."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import pyposeext
from pyposeext.cli.main import main
from pyposeext.errors import InputError
from pyposeext.io.weights import cached_weights_path
from pyposeext.models import create_model, registry
from pyposeext.models.registry import Checkpoint, list_checkpoints
from pyposeext.models.weights import save_model
from tests.io.servers import Behaviour, serving
from tests.models.test_weights import CONTENT, DIGEST, published

__all__ = ["published"]


def error_of(capsys, *arguments):
    assert main(["weights", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("progress", ["bar", "json", "none"])
def test_get(published, capsys, progress):
    with serving(Behaviour(CONTENT)) as address:
        published(address)
        assert main(["weights", "get", "small-known", "--progress", progress]) == 0
        out, err = capsys.readouterr()
        assert f"source_sha256: {DIGEST}" in out
        assert "nobody has verified" not in out
        assert main(["weights", "get", "small-unknown", "--progress", "none"]) == 0
        assert (
            f"no SHA-256 of small-unknown is known, so nobody has verified this one: {DIGEST}"
            in capsys.readouterr().out
        )
    if progress == "bar":
        assert "small-known" in err
    else:
        lines = [json.loads(line) for line in err.splitlines()]
        assert lines[-1:] == ([{"received": len(CONTENT), "total": len(CONTENT)}] if progress == "json" else [])


def test_an_interrupt_keeps_what_has_arrived(published, cache, capsys, monkeypatch):
    @contextmanager
    def impatient(*_):
        def stop(received):
            if received.received:
                raise KeyboardInterrupt

        yield stop

    behaviour = Behaviour(CONTENT, delay=0.01)
    with serving(behaviour) as address:
        published(address)
        with monkeypatch.context() as patch:
            patch.setattr("pyposeext.cli.progress.show_download", impatient)
            assert main(["weights", "get", "small-known"]) == 130
        assert capsys.readouterr().err == "pyposeext: interrupted\n"
        size = (cache / "small-known.download.part").stat().st_size
        assert 0 < size < len(CONTENT)
        assert main(["weights", "get", "small-known", "--progress", "none"]) == 0
    assert behaviour.requests[-1]["Range"] == f"bytes={size}-"


def test_a_model_alone_runs_with_the_weights_fetched_for_it(cache, monkeypatch):
    name = "keypoint_rcnn_efficientnet_lite0_fpn"
    files = (Checkpoint("small-pose", "https://example.org/a", "none"),)
    monkeypatch.setitem(registry._ENTRIES, name, replace(registry.model_entry(name), checkpoints=files))
    with pytest.raises(InputError, match=f"no weights of the model {name}.*weights get small-pose"):
        pyposeext.load(name, "cpu")
    save_model(cached_weights_path("small-pose"), create_model(name, min_size=64))
    for arguments in ({}, {"weights": "small-pose"}):
        estimator = pyposeext.load(name, "cpu", **arguments)
        assert estimator.source["weights"] == str(cached_weights_path("small-pose"))
        assert estimator.model.model_arguments["min_size"] == 64


def test_list(published, capsys):
    with serving(Behaviour(CONTENT)) as address:
        published(address)
        main(["weights", "get", "small-known", "--progress", "none"])
    cached_weights_path("broken").write_text("text")
    capsys.readouterr()
    assert main(["weights", "list", "--json"]) == 0
    weights = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    states = {name: entry["state"] for name, entry in weights.items() if name.startswith("small") or name == "default"}
    assert states == {
        "default": "shipped",
        "small-known": "fetched",
        "small-unknown": "can be fetched",
        "small-other": "can be fetched",
        "small-page": "by hand",
    }
    assert set(weights) >= {checkpoint.name for _, checkpoint in list_checkpoints()}
    assert weights["small-known"]["source_sha256"] == DIGEST
    assert weights["small-unknown"]["sha256"] == ""
    assert "damaged" in weights["broken"]["about"]
    assert main(["weights", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "127.0.0.1  SHA-256 not known  none" in lines["small-unknown"]
    assert "64 digits of its SHA-256 known" in lines["small-other"]
    assert "small_linear" in lines["small-page"]
    assert "fetched" in lines["small-known"]


def test_convert_and_remove(published, tmp_path, capsys):
    published()
    torch.save({"weight": torch.ones(2, 5), "bias": torch.ones(2)}, tmp_path / "a.pth")
    target = tmp_path / "a.safetensors"
    width = ["--arguments", '{"width": 5}']
    assert (
        main(["weights", "convert", str(tmp_path / "a.pth"), "--model", "small_linear", "-o", str(target), *width]) == 0
    )
    assert main(["weights", "verify", str(target)]) == 0
    assert "arguments: {'width': 5}" in capsys.readouterr().out
    assert main(["weights", "convert", str(tmp_path / "a.pth"), "--checkpoint", "small-page", *width]) == 0
    assert "no SHA-256 of small-page is known, so nobody has verified this one" in capsys.readouterr().out
    assert main(["weights", "verify", "small-page"]) == 0
    capsys.readouterr()
    assert main(["weights", "remove", "small-page"]) == 0
    assert capsys.readouterr().out == f"removed {cached_weights_path('small-page')}\n"
    assert not cached_weights_path("small-page").exists()


def test_wrong_input(published, tmp_path, capsys):
    published()
    (tmp_path / "a.pth").write_bytes(CONTENT)
    file = tmp_path / "a.pth"
    output = ["-o", tmp_path / "a.safetensors"]
    for arguments, sentence in (
        (["get", "nothing"], "checkpoint must be one of"),
        (
            ["get", "small-page"],
            "is given out by a web page only: download the file by hand from https://example.org/page",
        ),
        (["remove", "nothing"], "weights must be the name of some in the cache"),
        (["convert", file], "output must be given where --checkpoint does not name the file"),
        (["convert", file, "-o", "a.pth"], "output must end in .safetensors"),
        (["convert", file, "--checkpoint", "nothing"], "checkpoint must be one of"),
        (["convert", file, *output, "--arguments", "{"], "arguments must be a JSON object"),
        (["convert", file, *output, "--arguments", "[1]"], "arguments must be a JSON object"),
        (["convert", file, *output, "--arguments", '{"height": 1}'], "takes the arguments width, got 'height'"),
        (["convert", file, *output, "--arguments", '{"file": 1}'], "takes the arguments width, got 'file'"),
        (["verify", "small-known"], "`pyposeext weights get small-known` fetches it"),
    ):
        assert sentence in error_of(capsys, *arguments), arguments
    assert not (tmp_path / "a.safetensors").exists()
