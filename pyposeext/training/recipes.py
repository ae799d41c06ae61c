"""Named ways to train: the published ones, and this package's own.

Not the same as in torchvision's references/detection are the batches of "mask_rcnn" and "keypoint_rcnn": images are
drawn at random with repetition, not shuffled by epochs, and a batch may hold upright and wide images together, which
the references put into batches of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyposeext.errors import InputError
from pyposeext.training.engine import Settings


@dataclass(frozen=True)
class Recipe:
    """What a recipe decides; whatever is given beside it goes over that.

    Attributes:
        batch_size: images or crops per batch and process.
        canvases: sides of the square training images of detectors; None for whole images.
        settings: of the training loop.
        images_per_step: how many images of a step the learning rate is for, to which it is scaled in proportion; None:
            it is taken as it is.
    """

    batch_size: int
    canvases: tuple[int, ...] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    images_per_step: int | None = None


_PLAIN = {"trunk_rate": 1.0, "clip": None, "average_decay": 0.0, "schedule": "steps"}
# Of torchvision's references/detection, for 8 GPUs of 2 images.
_RCNN = {
    **_PLAIN,
    "optimizer": "sgd",
    "learning_rate": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "warmup_steps": 1000,
}
RECIPES = {
    "default": Recipe(batch_size=8, canvases=(320,)),
    # Sun et al., CVPR 2019, and experiments/coco/hrnet of the released code: 210 epochs, drops after 170 and 200, 4
    # GPUs of 32 crops. The released code's weight decay never reaches Adam.
    "hrnet": Recipe(
        batch_size=32,
        canvases=(320,),
        settings={
            **_PLAIN,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "milestones": (170 / 210, 200 / 210),
        },
    ),
    # He et al., ICCV 2017, as torchvision's references/detection trains it: 26 epochs, drops after 16 and 22.
    "mask_rcnn": Recipe(
        batch_size=2,
        canvases=None,
        settings={**_RCNN, "milestones": (16 / 26, 22 / 26)},
        images_per_step=16,
    ),
    # The same with joints: 46 epochs, drops after 36 and 43.
    "keypoint_rcnn": Recipe(
        batch_size=2,
        canvases=None,
        settings={**_RCNN, "milestones": (36 / 46, 43 / 46)},
        images_per_step=16,
    ),
}


def recipe_of(name: str) -> Recipe:
    """The recipe of that name, or an InputError that lists the names there are."""
    if name not in RECIPES:
        raise InputError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]


def recipe_settings(recipe: Recipe, images: int, given: Mapping[str, Any]) -> Settings:
    """The settings of a run.

    Args:
        recipe: what holds where nothing is given.
        images: images of a batch, all processes together.
        given: settings by name that go over the recipe; None means not given.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = {**recipe.settings, **chosen}
    if recipe.images_per_step is not None and "learning_rate" not in chosen:
        settings["learning_rate"] *= images * settings.get("accumulate", 1) / recipe.images_per_step
    return Settings(**settings)
