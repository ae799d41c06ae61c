"""The LSP readers on files generated in the official layouts, and on the real ones where they are present."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from pyposeext.datasets import LeedsSports, LeedsSportsExtended
from pyposeext.errors import InputError
from pyposeext.skeletons import LSP14


def write_images(folder: Path, names: list[str]) -> None:
    (folder / "images").mkdir()
    for name in names:
        cv2.imwrite(str(folder / "images" / name), np.full((150, 100, 3), 90, np.uint8))


def test_lsp_splits_and_flag(tmp_path: Path) -> None:
    joints = np.zeros((3, 14, 1003))
    joints[0] = np.arange(14)[:, None] + 10
    joints[1] = 2 * np.arange(14)[:, None] + 20 + np.arange(1003) % 50
    joints[2, 3] = 1  # the left hip is occluded everywhere
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    write_images(tmp_path, ["im0001.jpg", "im1001.jpg", "im1003.jpg"])
    train, test = LeedsSports(tmp_path, "train"), LeedsSports(tmp_path, "test")
    assert (len(train), len(test)) == (1000, 3)
    assert train.sample(0).name == "im0001.jpg"
    sample = test.sample(2)
    assert (sample.name, sample.image_id) == ("im1003.jpg", 1003)
    assert sample.keypoints[0, :, 2].tolist() == [2, 2, 2, 1] + [2] * 10
    assert sample.keypoints[0, 13].tolist() == [23, 48, 2]
    # The extent is 13 x 26 pixels; the margin is 0.08 of the longer side.
    assert sample.boxes[0].tolist() == pytest.approx([10 - 2.08, 22 - 2.08, 23 + 2.08, 48 + 2.08], abs=1e-4)
    assert test.skeleton is LSP14


def test_extended_flag_means_labelled(tmp_path: Path) -> None:
    joints = np.zeros((14, 3, 2))
    joints[:, 0], joints[:, 1] = np.arange(14)[:, None] + 5, np.arange(14)[:, None] + 20
    joints[:, 2] = 1
    joints[4] = [[-30, -30], [-7, -7], [0, 0]]
    joints[:, 2, 1] = 0  # nobody labelled in the second image
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    write_images(tmp_path, ["im00001.jpg", "im00002.jpg"])
    dataset = LeedsSportsExtended(tmp_path)
    assert len(dataset) == 2
    sample = dataset.sample(0)
    assert sample.keypoints[0, 4].tolist() == [0, 0, 0]
    assert sample.keypoints[0, 0].tolist() == [5, 20, 2]
    assert dataset.sample(1).boxes.shape == (0, 4)


def test_the_two_layouts_are_not_taken_for_each_other(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.zeros((14, 3, 5))})
    with pytest.raises(InputError, match=r"joints must be \[3, 14, N\], got \[14, 3, 5\]"):
        LeedsSports(tmp_path)
    scipy.io.savemat(tmp_path / "joints.mat", {"other": 1})
    with pytest.raises(InputError, match="not a MATLAB file with the variable joints"):
        LeedsSportsExtended(tmp_path)
    with pytest.raises(InputError, match=r"joints\.mat.* cannot be read"):
        LeedsSports(tmp_path / "nowhere")
    with pytest.raises(InputError, match="split must be 'train' or 'test'"):
        LeedsSports(tmp_path, "val")  # type: ignore[arg-type]


def test_the_real_files(test_data: Path) -> None:
    train = LeedsSports(test_data / "pose2d/lsp", "train")
    test = LeedsSports(test_data / "pose2d/lsp", "test")
    extended = LeedsSportsExtended(test_data / "pose2d/lspet400")
    assert (len(train), len(test), len(extended)) == (1000, 500, 400)
    for dataset in (train, test, extended):
        sample = dataset.sample(len(dataset) - 1)
        height, width = sample.image.shape[:2]
        labelled = sample.keypoints[0, sample.keypoints[0, :, 2] > 0]
        assert (labelled[:, :2].mean(0) < [width, height]).all()
        assert len(labelled) >= 10
