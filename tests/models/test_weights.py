"""Weights by name: fetched into the cache, found there, converted by hand, removed."""

from __future__ import annotations

import hashlib
import io

import pytest
import safetensors
import torch
from torch import nn

from pyposeext.errors import InputError, UnwritableError
from pyposeext.io.weights import cache_folder, cached_weights_path, list_cached_weights, save_weights
from pyposeext.models import create_model, register_model, registry
from pyposeext.models.registry import Checkpoint
from pyposeext.models.weights import convert_checkpoint, get_weights, remove_weights, weights_file, weights_of_model
from tests.io.servers import Behaviour, serving

FAST = {"pause": 0.001, "timeout": 5.0, "attempts": 2}
WEIGHT = torch.arange(8.0).reshape(2, 4)


def published_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"module.weight": WEIGHT, "module.bias": torch.zeros(2)}}, buffer)
    return buffer.getvalue()


CONTENT = published_file()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(monkeypatch, cache):
    """A function that registers a model of one layer with published files on a server; called with the address."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setenv("no_proxy", "*")

    def register(address="https://example.org/page"):
        facts = {"licence": "none", "arguments": {"width": 4}}

        @register_model(
            checkpoints=[
                Checkpoint("small-known", address, sha256=DIGEST[:8], **facts),
                Checkpoint("small-unknown", address, **facts),
                Checkpoint("small-other", address, sha256=64 * "0", **facts),
                Checkpoint("small-page", "https://example.org/page", direct=False, **facts),
            ]
        )
        def small_linear(width: int = 3) -> nn.Module:
            """A layer."""
            return nn.Linear(width, 2)

    return register


def test_the_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PYPOSEEXT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("PYPOSEEXT_CACHE", "~/weights")
    assert cache_folder() == tmp_path / "home/weights"
    monkeypatch.setenv("PYPOSEEXT_CACHE", "")
    assert cache_folder() == tmp_path / "shared/pyposeext"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home/.cache/pyposeext"
    assert list_cached_weights() == []


@pytest.mark.parametrize("name", ["small-known", "small-unknown"])
def test_fetched_weights_are_found_by_their_name(published, cache, name):
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as address:
        published(address)
        with pytest.raises(
            InputError, match=rf"weights {name} are not on this machine: `pyposeext weights get {name}`"
        ):
            weights_file(name)
        manifest = get_weights(name, **FAST)
        assert (manifest["source"], manifest["source_sha256"], manifest["licence"]) == (address, DIGEST, "none")
        assert manifest["arguments"] == {"width": 4}
        assert manifest["file"] == str(weights_file(name)) == str(cache / f"{name}.safetensors")
        assert list(cache.iterdir()) == [cached_weights_path(name)]
        assert torch.equal(create_model("small_linear", name).weight, WEIGHT)
        # What is there is not fetched again.
        assert get_weights(name, **FAST) == manifest
    assert len(behaviour.requests) == 1


def test_a_model_takes_its_only_weights(published, cache):
    with serving(Behaviour(CONTENT)) as address:
        published(address)
        with pytest.raises(
            InputError,
            match=r"no weights of the model small_linear.*published are small-known, .*`pyposeext weights get small-",
        ):
            weights_of_model("small_linear")
        get_weights("small-known", **FAST)
        # Other files in the cache are not the model's.
        save_weights(cached_weights_path("mine"), {"a": torch.zeros(1)}, {"model": "small_linear"})
        assert weights_of_model("small_linear") == cached_weights_path("small-known")
        get_weights("small-unknown", **FAST)
    with pytest.raises(InputError, match="several weights here: say with weights which of small-known, small-unknown"):
        weights_of_model("small_linear")
    assert weights_of_model("default").name == "default.safetensors"


def test_a_wrong_file_is_not_kept(published, cache):
    with serving(Behaviour(CONTENT)) as address:
        published(address)
        with pytest.raises(InputError, match=f"has the SHA-256 {DIGEST}, but 0000"):
            get_weights("small-other", **FAST)
    assert list(cache.iterdir()) == []


def test_what_is_no_checkpoint_is_not_kept(published, cache):
    behaviour = Behaviour(b"<html>Sign in to this network</html>")
    with serving(behaviour) as address:
        published(address)
        with pytest.raises(InputError, match="damaged or not a pickle"):
            get_weights("small-unknown", **FAST)
        assert list(cache.iterdir()) == []
        behaviour.content = CONTENT
        get_weights("small-unknown", **FAST)
    assert len(behaviour.requests) == 2


def test_an_interrupted_conversion_does_not_fetch_again(published, cache, monkeypatch):
    from pyposeext.models import weights as module

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as address:
        published(address)
        with monkeypatch.context() as patch:
            patch.setattr(module, "convert_checkpoint", interrupt)
            with pytest.raises(KeyboardInterrupt):
                get_weights("small-known", **FAST)
        get_weights("small-known", **FAST)
    assert len(behaviour.requests) == 1
    assert list(cache.iterdir()) == [cached_weights_path("small-known")]


def test_a_full_disk_does_not_cost_the_download(published, cache, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device")

    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as address:
        published(address)
        with monkeypatch.context() as patch:
            patch.setattr("safetensors.torch.save_file", full)
            with pytest.raises(UnwritableError, match=r"cannot write .*No space left"):
                get_weights("small-known", **FAST)
        get_weights("small-known", **FAST)
    assert len(behaviour.requests) == 1


def test_files_that_must_be_fetched_by_hand(published, tmp_path):
    published()
    with pytest.raises(
        InputError,
        match=r"small-page is given out by a web page only: download the file by hand from https://example\.org/page, "
        r"then `pyposeext weights convert FILE --checkpoint small-page`",
    ):
        get_weights("small-page")
    with pytest.raises(InputError, match=r"small-page are not on this machine: download the file by hand from https"):
        weights_file("small-page")
    with pytest.raises(InputError, match=r"checkpoint must be one of .*small-known, small-unknown.*, got 'nothing'"):
        get_weights("nothing")
    (tmp_path / "a.pth").write_bytes(CONTENT)
    convert_checkpoint(tmp_path / "a.pth", None, cached_weights_path("small-page"), checkpoint="small-page")
    assert weights_of_model("small_linear") == weights_file("small-page") == cached_weights_path("small-page")
    assert get_weights("small-page")["source_sha256"] == DIGEST


def test_which_file_is_converted(published, tmp_path):
    published("https://example.org/known.pth")
    (tmp_path / "a.pth").write_bytes(CONTENT)
    output = tmp_path / "a.safetensors"
    # Recognised by its hash, with and without the model's name.
    for model in (None, "small_linear"):
        assert convert_checkpoint(tmp_path / "a.pth", model, output)["source"] == "https://example.org/known.pth"
    assert convert_checkpoint(tmp_path / "a.pth", None, output, checkpoint="small-page")["source"].endswith("/page")
    torch.save({"weight": torch.ones(2, 5), "bias": torch.ones(2)}, tmp_path / "b.pth")
    manifest = convert_checkpoint(tmp_path / "b.pth", None, output, checkpoint="small-unknown", arguments={"width": 5})
    assert manifest["arguments"] == {"width": 5}
    for arguments, sentence in (
        ({"model_name": None}, r"b\.pth is not known by its SHA-256: give the model, or the checkpoint"),
        ({"model_name": "default", "checkpoint": "small-page"}, "is of the model small_linear, not of default"),
        (
            {"model_name": None, "checkpoint": "small-known"},
            rf"is not small-known: its SHA-256 is \w+, not {DIGEST[:8]}",
        ),
        ({"model_name": "small_linear"}, "do not fit small_linear"),
        ({"model_name": "small_linear", "arguments": {"height": 1}}, "takes the arguments width, got 'height'"),
    ):
        with pytest.raises(InputError, match=sentence):
            convert_checkpoint(tmp_path / "b.pth", output=tmp_path / "never.safetensors", **arguments)
    assert not (tmp_path / "never.safetensors").exists()


def test_removing(published, cache):
    behaviour = Behaviour(CONTENT)

    def stop(received):
        if received.received:
            raise KeyboardInterrupt

    with serving(behaviour) as address:
        published(address)
        get_weights("small-known", **FAST)
        with pytest.raises(KeyboardInterrupt):
            get_weights("small-unknown", stop, **FAST)
    assert remove_weights("small-known") == [cached_weights_path("small-known")]
    assert {path.name for path in remove_weights("small-unknown")} == {
        "small-unknown.download.part",
        "small-unknown.download.part.json",
    }
    assert list(cache.iterdir()) == []
    for name in ("small-known", "../small-known", "default"):
        with pytest.raises(InputError, match=r"weights must be the name of some in the cache \(.*\), got"):
            remove_weights(name)
