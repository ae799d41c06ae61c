"""The named ways to train are the published ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyposeext.errors import InputError
from pyposeext.training.recipes import RECIPES, recipe_of, recipe_settings


def test_hrnet() -> None:
    settings = recipe_settings(recipe_of("hrnet"), 32 * 4, {"steps": 210})
    assert (settings.optimizer, settings.learning_rate, settings.weight_decay) == ("adam", 1e-3, 0)
    assert (settings.schedule, settings.warmup_steps, settings.clip) == ("steps", 0, None)
    assert [round(210 * share) for share in settings.milestones] == [170, 200]
    assert settings.average_decay == 0
    assert settings.trunk_rate == 1


@pytest.mark.parametrize(("images", "rate"), [(16, 0.02), (2, 0.0025), (32, 0.04)])
def test_mask_rcnn(images: int, rate: float) -> None:
    settings = recipe_settings(recipe_of("mask_rcnn"), images, {"steps": 26})
    assert settings.learning_rate == pytest.approx(rate)
    assert (settings.optimizer, settings.momentum, settings.weight_decay) == ("sgd", 0.9, 1e-4)
    assert settings.warmup_steps == 1000
    assert [round(26 * share) for share in settings.milestones] == [16, 22]
    assert RECIPES["mask_rcnn"].canvases is None


def test_keypoint_rcnn_is_mask_rcnn_for_longer() -> None:
    mask, keypoint = (recipe_settings(recipe_of(name), 16, {"steps": 46}) for name in ("mask_rcnn", "keypoint_rcnn"))
    assert [round(46 * share) for share in keypoint.milestones] == [36, 43]
    assert replace(keypoint, milestones=mask.milestones) == mask
    assert RECIPES["keypoint_rcnn"].canvases is None


def test_single_options_go_over_the_recipe() -> None:
    given = {"steps": 5, "learning_rate": 0.5, "optimizer": None, "warmup_steps": 0, "accumulate": 4}
    settings = recipe_settings(recipe_of("mask_rcnn"), 2, given)
    assert (settings.learning_rate, settings.optimizer, settings.warmup_steps) == (0.5, "sgd", 0)
    del given["learning_rate"]
    assert recipe_settings(recipe_of("mask_rcnn"), 2, given).learning_rate == pytest.approx(0.02 * 8 / 16)


def test_the_default_recipe_is_the_settings_defaults() -> None:
    settings = recipe_settings(recipe_of("default"), 8, {"steps": 5})
    assert (settings.optimizer, settings.schedule, settings.average_decay) == ("adamw", "one_cycle", 0.998)
    assert RECIPES["default"].canvases == (320,)
    with pytest.raises(InputError, match="recipe must be one of default, hrnet, mask_rcnn, keypoint_rcnn, got 'fast'"):
        recipe_of("fast")
