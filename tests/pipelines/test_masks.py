"""Masks on their way from a model to poses and files."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval import mask as coding

from pyposeext.errors import InputError
from pyposeext.io.coco import read_coco
from pyposeext.io.csv import read_csv
from pyposeext.io.rle import mask_area
from pyposeext.io.video import VideoReader
from pyposeext.pipelines.rcnn import RCNNEstimator
from pyposeext.pipelines.settings import DrawingSettings, EstimatorSettings
from pyposeext.skeletons import COCO17, NO_JOINTS
from tests.io.videos import make_video
from tests.pipelines.fakes import GivenBoxes, MaskSpotModel

BOX = (200, 100, 280, 300)


def spot(box=BOX, size=(480, 640)):
    image = np.zeros((*size, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def assert_left_half(mask, box=BOX, size=(480, 640)):
    pixels = coding.decode(mask)
    assert pixels.shape == size
    rows, columns = np.nonzero(pixels)
    middle = (box[0] + box[2]) / 2
    # The model sees the image at a quarter of its size.
    np.testing.assert_allclose([columns.min(), rows.min()], box[:2], atol=4.5)
    np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], [middle, box[3]], atol=4.5)
    assert mask_area(mask) == pixels.sum() == pytest.approx((middle - box[0]) * (box[3] - box[1]), rel=0.1)


@pytest.mark.parametrize("pose_from", ["features", "crops"])
@pytest.mark.parametrize("skeleton", [COCO17, NO_JOINTS])
def test_masks_are_in_source_pixels(pose_from, skeleton):
    estimator = RCNNEstimator(MaskSpotModel(skeleton), EstimatorSettings(pose_from=pose_from))
    poses = estimator.image(spot())
    assert poses.keypoints.shape == (1, len(skeleton), 3)
    assert isinstance(poses.masks[0]["counts"], str)
    assert_left_half(poses.masks[0])
    nobody = estimator.image(np.zeros((40, 60, 3), np.uint8))
    assert (len(nobody), nobody.keypoints.shape) == (0, (0, len(skeleton), 3))


def test_masks_stay_with_their_people(tmp_path):
    images = [spot((20 + 4 * n, 40, 60 + 4 * n, 140), (160, 240)) for n in range(4)]
    clip = make_video(tmp_path / "clip.mkv", size=(240, 160), images=images)
    for frame in RCNNEstimator(MaskSpotModel()).video(clip, track=True):
        assert frame.poses.ids.tolist() == [0]
        left = 20 + 4 * frame.number
        assert_left_half(frame.poses.masks[0], (left, 40, left + 40, 140), (160, 240))


def test_a_video_of_people_without_joints_is_saved(tmp_path):
    images = [spot((20 + 4 * n, 40, 60 + 4 * n, 140), (160, 240)) for n in range(4)]
    clip = make_video(tmp_path / "clip.mkv", size=(240, 160), images=images)
    video = RCNNEstimator(MaskSpotModel(NO_JOINTS)).video(clip, track=True)
    saved = video.save(tmp_path / "out")
    # The PoseTrack format has no place for them.
    assert set(saved.files) == {"coco", "csv", "mp4", "timeline", "toml"}
    frames = read_coco(saved.files["coco"])
    assert [frame.poses.ids.tolist() for frame in frames] == [[0]] * 4
    assert_left_half(frames[2].poses.masks[0], (28, 40, 68, 140), (160, 240))
    assert read_csv(saved.files["csv"], NO_JOINTS) == []
    video.save(tmp_path / "plain", ["mp4"], drawing=DrawingSettings(masks=False))
    filled, plain = (next(iter(VideoReader(tmp_path / name / "clip.mp4"))).image for name in ("out", "plain"))
    inside, beside = (90, 30), (90, 52)
    assert filled[inside].min() < 230 < plain[inside].min()
    assert filled[beside].min() > 230


def test_given_boxes_have_no_masks():
    poses = RCNNEstimator(MaskSpotModel()).image(spot(), [BOX])
    assert poses.masks is None
    poses = RCNNEstimator(MaskSpotModel(), detector=GivenBoxes([BOX], [0.9])).image(spot())
    assert (len(poses), poses.masks) == (1, None)


def test_a_model_without_joints_takes_no_boxes():
    with pytest.raises(InputError, match="boxes must be None with a model that finds no joints"):
        RCNNEstimator(MaskSpotModel(NO_JOINTS)).image(spot(), [BOX])
    with pytest.raises(InputError, match="detector must be None with a model that finds no joints"):
        RCNNEstimator(MaskSpotModel(NO_JOINTS), detector=GivenBoxes())
