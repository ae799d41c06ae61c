from __future__ import annotations

import struct

import pytest
import safetensors.torch
import torch

from pyposeext.errors import InputError
from pyposeext.io import weights
from pyposeext.io.weights import list_weights, read_manifest, read_weights, save_weights, weights_path

MANIFEST = {"model": "some_model", "arguments": {"num_joints": 14, "min_size": [96, 128]}, "licence": "Apache-2.0"}


def state():
    return {
        "conv.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "norm.running_var": torch.tensor([1e-9, 2.0]),
        "norm.num_batches_tracked": torch.tensor(2**40),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_round_trip(tmp_path, dtype, tolerance):
    path = tmp_path / "weights.safetensors"
    original = state()
    save_weights(path, original, MANIFEST, dtype)
    read, manifest = read_weights(path)
    assert {key: value for key, value in manifest.items() if key != "content_sha256"} == MANIFEST
    assert list(read) == sorted(original)
    torch.testing.assert_close(read["conv.weight"], original["conv.weight"], rtol=tolerance, atol=tolerance / 10)
    assert read["conv.weight"].dtype == torch.float32
    assert torch.equal(read["norm.running_var"], original["norm.running_var"])
    assert read["norm.num_batches_tracked"].item() == 2**40
    assert list(tmp_path.iterdir()) == [path]


def test_half_precision_halves_the_file(tmp_path):
    tensors = {"weight": torch.randn(200, 200)}
    sizes = {}
    for dtype in ("float32", "float16"):
        save_weights(tmp_path / dtype, tensors, MANIFEST, dtype)
        sizes[dtype] = (tmp_path / dtype).stat().st_size
    assert sizes["float32"] - sizes["float16"] == 200 * 200 * 2


def test_what_float16_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match=r"weight goes beyond torch\.float16: use float32"):
        save_weights(path, {"weight": torch.full((2, 2), 1e6)}, MANIFEST, "float16")
    assert not list(tmp_path.iterdir())


def test_tied_tensors_can_be_saved(tmp_path):
    tied = torch.randn(3, 3)
    save_weights(tmp_path / "tied.safetensors", {"a": tied, "b": tied}, MANIFEST)
    assert torch.equal(read_weights(tmp_path / "tied.safetensors")[0]["b"], tied)


@pytest.mark.parametrize("content", [b"", b"not a weight file at all", b"\x80\x02}q\x00.", struct.pack("<Q", 2**62)])
def test_what_is_not_safetensors_is_one_sentence(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"weights\.safetensors is damaged or not a safetensors file .*weights convert"
    ):
        read_weights(path)
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        read_manifest(path)


def test_truncated_and_altered_files(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, state(), MANIFEST)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        read_weights(path)
    path.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    with pytest.raises(InputError, match="is damaged: its contents do not have the SHA-256 in its manifest"):
        read_weights(path)


def test_a_missing_file_and_a_foreign_one(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.safetensors does not exist"):
        read_weights(tmp_path / "nowhere.safetensors")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    tensors, manifest = read_weights(tmp_path / "foreign.safetensors")
    assert manifest == {}
    assert tensors["a"].tolist() == [1, 1]
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "bad.safetensors", metadata={"arguments": "{"})
    with pytest.raises(InputError, match="arguments must be JSON"):
        read_manifest(tmp_path / "bad.safetensors")


def test_wrong_manifests_and_places(tmp_path):
    with pytest.raises(InputError, match="manifest must hold 'model'"):
        save_weights(tmp_path / "a.safetensors", state(), {"licence": "none"})
    with pytest.raises(InputError, match="manifest must hold 'model'"):
        save_weights(tmp_path / "a.safetensors", state(), {"model": "m", "colour": "red"})
    with pytest.raises(InputError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        save_weights(tmp_path / "a.safetensors", state(), MANIFEST, "int8")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        save_weights(tmp_path / "file" / "a.safetensors", state(), MANIFEST)


def test_shipped_weights_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_SHIPPED", tmp_path)
    assert list_weights() == []
    with pytest.raises(InputError, match=r"name of shipped weights \(none\), got 'default'"):
        weights_path("default")
    save_weights(tmp_path / "default.safetensors", state(), MANIFEST)
    assert list_weights() == ["default"]
    assert weights_path("default") == tmp_path / "default.safetensors"
    with pytest.raises(InputError, match=r"name of shipped weights \(default\), got 'other'"):
        weights_path("other")


def test_weights_have_the_mode_of_any_new_file(tmp_path):
    save_weights(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {"model": "small"})
    (tmp_path / "other").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
