from __future__ import annotations

import pickle
import zipfile
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from torch import nn

from pyposeext.errors import InputError
from pyposeext.io import weights
from pyposeext.io.weights import read_manifest, save_weights
from pyposeext.models import convert_state_dict, create_model, list_models, register_model, registry
from pyposeext.models.registry import Checkpoint, list_checkpoints
from pyposeext.models.weights import convert_checkpoint, load_checkpoint, save_model, verify_weights

SMALL = "small_linear"


@pytest.fixture
def small(monkeypatch):
    """A model of one layer, registered for one test."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @register_model(lambda official: {key.removeprefix("old_"): value for key, value in official.items()})
    def small_linear(width: int = 3, bias: bool = True) -> nn.Module:
        """A layer."""
        return nn.Linear(width, 2, bias)

    @register_model(arguments_of=small_linear)
    def small_twin(**arguments):
        """The same."""
        return nn.Linear(arguments["width"], 2, arguments["bias"])


def test_names():
    assert "keypoint_rcnn_resnet50_fpn" in list_models()
    assert "keypoint_rcnn_efficientnet_lite0_fpn" in list_models()
    assert list_models() == sorted(list_models())
    assert registry.model_entry("default").name == "keypoint_rcnn_efficientnet_lite0_fpn"


def test_arguments_reach_the_builder(small):
    model = create_model(SMALL, width=5)
    assert not model.training
    assert model.in_features == 5
    assert (model.model_name, model.model_arguments) == (SMALL, {"width": 5, "bias": True})
    assert create_model("small_twin", bias=False).bias is None


def test_unknown_names_and_arguments(small):
    with pytest.raises(InputError, match=r"model must be one of default, .*small_linear.*, got 'nothing'"):
        create_model("nothing")
    with pytest.raises(InputError, match="got 'nothing'"):
        convert_state_dict("nothing", {})
    with pytest.raises(InputError, match="small_linear takes the arguments width, bias, got 'depth'"):
        create_model(SMALL, depth=3)
    with pytest.raises(InputError, match="small_twin takes the arguments width, bias, got 'depth'"):
        create_model("small_twin", depth=3)
    with pytest.raises(ValueError, match="two models are named 'small_linear'"):

        @register_model()
        def small_linear():
            """Another."""


def test_weights_bring_their_arguments(small, tmp_path):
    path = tmp_path / "weights.safetensors"
    model = create_model(SMALL, width=7)
    save_model(path, model, source="a test", licence="none")
    manifest = read_manifest(path)
    assert manifest["arguments"] == {"width": 7, "bias": True}
    assert manifest["created_by"].startswith("pyposeext ")
    again = create_model(SMALL, path)
    assert torch.equal(again.weight, model.weight)
    assert again.model_arguments == {"width": 7, "bias": True}
    assert verify_weights(path)["parameters"] == 16


def test_weights_of_another_model(small, tmp_path):
    save_model(tmp_path / "weights.safetensors", create_model("small_twin"))
    with pytest.raises(InputError, match="are of the model small_twin, not of small_linear"):
        create_model(SMALL, tmp_path / "weights.safetensors")


def test_weights_that_do_not_fit(small, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_model(path, create_model(SMALL))
    with pytest.raises(InputError, match=r"do not fit small_linear: weight is \[2, 3\], not \[2, 4\]"):
        create_model(SMALL, path, width=4)
    with pytest.raises(InputError, match="do not fit small_linear: bias is not of this model"):
        create_model(SMALL, path, bias=False)
    save_weights(path, {"weight": torch.zeros(2, 3), "more": torch.zeros(1)}, {"model": SMALL})
    with pytest.raises(InputError, match=r"bias is missing \(and 1 more differences\)"):
        create_model(SMALL, path)
    with pytest.raises(InputError, match="bias is missing"):
        verify_weights(path)


def test_default_needs_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_SHIPPED", tmp_path)
    with pytest.raises(
        InputError, match=r"weights must be a file or the name of shipped weights \(none\), got 'default'"
    ):
        create_model("default")
    save_model(tmp_path / "default.safetensors", create_model("keypoint_rcnn_efficientnet_lite0_fpn"), "float16")
    assert (tmp_path / "default.safetensors").stat().st_size < 10e6
    model = create_model("default", min_size=96)
    assert model.model_name == "keypoint_rcnn_efficientnet_lite0_fpn"
    assert model.transform.min_size == (96,)


def test_convert(small, tmp_path):
    official = {"old_weight": torch.randn(2, 4), "old_bias": torch.randn(2)}
    for name, content in (("bare.pth", official), ("wrapped.pt", {"epoch": 3, "state_dict": official})):
        torch.save(content, tmp_path / name)
        manifest = convert_checkpoint(tmp_path / name, SMALL, tmp_path / "out.safetensors", arguments={"width": 4})
        assert manifest["arguments"] == {"width": 4, "bias": True}
        assert len(manifest["source_sha256"]) == 64
        assert torch.equal(create_model(SMALL, tmp_path / "out.safetensors").weight, official["old_weight"])
    with pytest.raises(InputError, match="do not fit small_linear: weight is"):
        convert_checkpoint(tmp_path / "bare.pth", SMALL, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


class Harmful:
    ran = False

    def __reduce__(self):
        return (setattr, (Harmful, "ran", True))


def test_checkpoints_are_read_without_executing_them(tmp_path):
    torch.save({"weight": torch.zeros(1), "other": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "noise.pth").write_bytes(b"\x00" * 100)
    Harmful.ran = False
    for name in ("harmful", "pickle", "noise"):
        with pytest.raises(InputError, match=rf"{name}\.pth (cannot be read safely|is damaged or not a pickle)"):
            load_checkpoint(tmp_path / f"{name}.pth")
    assert not Harmful.ran
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        load_checkpoint(tmp_path / "gone.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"must hold a state dict \(names and tensors\), got list"):
        load_checkpoint(tmp_path / "list.pth")


def test_prefixes_of_parallel_training_are_dropped(tmp_path):
    torch.save({"module.weight": torch.zeros(1)}, tmp_path / "parallel.pth")
    assert list(load_checkpoint(tmp_path / "parallel.pth")) == ["weight"]


def test_layouts_of_training_checkpoints(tmp_path):
    weights, older = {"weight": torch.ones(1)}, {"weight": torch.zeros(1)}
    parallel = {f"module.{key}": value for key, value in weights.items()}
    for content in (
        weights,
        {"state_dict": parallel, "best_state_dict": older, "model": "pose_hrnet", "perf": np.float64(0.75), "epoch": 3},
        {"model": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "iteration": 1},
        {"best_state_dict": weights, "perf": np.float32(0.5)},
    ):
        for legacy in (False, True):
            torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
            read = load_checkpoint(tmp_path / "a.pth")
            assert list(read) == ["weight"]
            assert read["weight"].item() == 1
    # A number as NumPy 1 wrote it.
    torch.save({"state_dict": weights, "perf": np.float64(0.75)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive, zipfile.ZipFile(tmp_path / "b.pth", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    assert list(load_checkpoint(tmp_path / "b.pth")) == ["weight"]


def test_forged_numbers_are_refused(tmp_path):
    torch.save({"weight": torch.ones(1), "n": np.array([{}, 1], dtype=object)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="cannot be read safely"):
        load_checkpoint(tmp_path / "a.pth")


def test_pickles_of_arrays(small, tmp_path):
    official = {"old_weight": np.ones((2, 3), np.float32), "old_bias": np.zeros(2, np.float32)}
    for name, content in (("a.pkl", {"model": official, "__author__": "x"}), ("b.pkl", {"blobs": official})):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
        convert_checkpoint(tmp_path / name, SMALL, tmp_path / "out.safetensors")
        assert create_model(SMALL, tmp_path / "out.safetensors").weight.sum() == 6


def test_names_of_checkpoints_are_unique_and_names_of_files(small):
    names = [checkpoint.name for _, checkpoint in list_checkpoints()]
    assert len(set(names)) == len(names)
    for taken in (names[0], "default"):
        with pytest.raises(ValueError, match=f"two checkpoints are named '{taken}'"):

            @register_model(checkpoints=[Checkpoint(taken, "https://example.org/a", "none")])
            def another():
                """Another."""

    twice = Checkpoint("twice", "https://example.org/a", "none")
    with pytest.raises(ValueError, match="two checkpoints are named 'twice'"):
        register_model(checkpoints=[twice, twice])(lambda: None)
    for wrong in ("", "../a", "a/b", "a b", "a:b", ".a"):
        with pytest.raises(ValueError, match="name must be of letters"):
            Checkpoint(wrong, "https://example.org/a", "none")
    for wrong in ("ABCDEF01", "1234", "g" * 64, "0" * 65):
        with pytest.raises(ValueError, match="sha256 must be 8 to 64 digits"):
            Checkpoint("a", "https://example.org/a", "none", sha256=wrong)


def test_every_published_file_can_be_built_and_is_described():
    for entry, checkpoint in list_checkpoints():
        assert set(checkpoint.arguments) <= set(entry.arguments), checkpoint.name
        assert urlsplit(checkpoint.source).scheme == "https", checkpoint.name
        assert checkpoint.licence, checkpoint.name
