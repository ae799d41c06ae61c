"""The estimator around a model: coordinates, filters, crops, loading."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyposeext
from pyposeext.errors import InputError
from pyposeext.io.weights import save_weights
from pyposeext.models import create_model
from pyposeext.models.weights import save_model
from pyposeext.pipelines.inputs import InputImage
from pyposeext.pipelines.loading import load
from pyposeext.pipelines.rcnn import RCNNEstimator
from pyposeext.pipelines.settings import EstimatorSettings
from tests.pipelines.fakes import BrightSpotModel

SMALL = {"min_size": 96, "max_size": 160, "proposals": (20, 10), "detections_per_image": 4}


def spot(box, size=(480, 640)):
    image = np.zeros((*size, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


@pytest.mark.parametrize("pose_from", ["features", "crops"])
@pytest.mark.parametrize("box", [(200, 100, 280, 300), (0, 0, 80, 120), (560, 360, 640, 480)])
def test_boxes_and_joints_are_in_source_pixels(pose_from, box):
    estimator = RCNNEstimator(BrightSpotModel(), EstimatorSettings(pose_from=pose_from))
    poses = estimator.image(spot(box))
    np.testing.assert_allclose(poses.boxes, [box], atol=4.01)
    # The middle of a box of whole pixels, counted from pixel centres.
    middle = [(box[0] + box[2] - 1) / 2, (box[1] + box[3] - 1) / 2]
    np.testing.assert_allclose(poses.keypoints[0, :, :2], [middle] * 17, atol=0.5)
    assert (poses.keypoints[..., 2] > 0.99).all()
    assert poses.scores.tolist() == pytest.approx([0.9])


def test_given_boxes_are_looked_at_at_full_resolution_in_one_batch():
    box = (200, 100, 280, 300)
    model = BrightSpotModel()
    given = [[190, 90, 290, 310], [180, 80, 300, 310], [150, 50, 300, 330]]
    poses = RCNNEstimator(model).image(spot(box), boxes=given)
    assert model.calls == [[(3, 256, 192)] * 3]
    np.testing.assert_array_equal(poses.boxes, given)
    # The model counts whole crop pixels, of which the largest crop has one to 1.37 source pixels: half of that is lost.
    np.testing.assert_allclose(poses.keypoints[..., 0], 239.5, atol=0.7)
    np.testing.assert_allclose(poses.keypoints[..., 1], 199.5, atol=0.7)
    np.testing.assert_allclose(poses.scores, poses.keypoints[..., 2].mean(axis=1), atol=1e-6)


def test_no_boxes_and_nobody_give_empty_poses():
    estimator = RCNNEstimator(BrightSpotModel())
    assert len(estimator.image(spot((0, 0, 9, 9)), boxes=[])) == 0
    for pose_from in ("features", "crops"):
        poses = RCNNEstimator(BrightSpotModel(), EstimatorSettings(pose_from=pose_from)).image(
            np.zeros((40, 60, 3), np.uint8)
        )
        assert poses.keypoints.shape == (0, 17, 3)


def test_weak_people_and_other_things_are_left_out():
    image = spot((200, 100, 280, 300))
    assert len(RCNNEstimator(BrightSpotModel(score=0.2)).image(image)) == 0
    assert len(RCNNEstimator(BrightSpotModel(score=0.2), EstimatorSettings(score_threshold=0.1)).image(image)) == 1
    assert len(RCNNEstimator(BrightSpotModel(label=2)).image(image)) == 0


@pytest.mark.parametrize(
    ("image", "boxes", "sentence"),
    [
        (np.zeros((4, 4), np.uint8), None, r"image must be RGB uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float32), None, "got float32"),
        (np.zeros((0, 4, 3), np.uint8), None, "not empty"),
        (np.zeros((4, 4, 3), np.uint8), [1, 2, 3, 4], r"boxes must be \[N, 4\], got shape \[4\]"),
        (np.zeros((4, 4, 3), np.uint8), [[1, 2, 1, 4]], "x2 > x1"),
        (np.zeros((4, 4, 3), np.uint8), [[1, 2, np.nan, 4]], "finite"),
    ],
)
def test_wrong_input(image, boxes, sentence):
    with pytest.raises(InputError, match=sentence):
        RCNNEstimator(BrightSpotModel()).image(image, boxes)


def test_steps_carry_the_ids_on():
    estimator, state, ids = RCNNEstimator(BrightSpotModel()), None, []
    for shift in range(0, 50, 10):
        poses, state = estimator.step(spot((200 + shift, 100, 280 + shift, 300)), state)
        ids.append(poses.ids.tolist())
    assert ids == [[0]] * 5


def test_a_tracker_goes_on_with_people_too_faint_to_be_found_alone():
    image = spot((200, 100, 280, 300))
    _, state = RCNNEstimator(BrightSpotModel(score=0.9)).step(image)
    poses, _ = RCNNEstimator(BrightSpotModel(score=0.25)).step(image, state)
    assert poses.ids.tolist() == [0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(path, create_model("keypoint_rcnn_efficientnet_lite0_fpn", **SMALL), "float16")
    return path


def test_a_weight_file_says_what_model_it_is_of(weights):
    estimator = pyposeext.load(weights, "cpu", settings=EstimatorSettings(score_threshold=0.0))
    assert estimator.source["name"] == "keypoint_rcnn_efficientnet_lite0_fpn"
    assert len(estimator.source["weights_sha256"]) == 64
    assert not estimator.model.training
    poses = estimator.image(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    assert poses.keypoints.shape[1:] == (17, 3)
    assert ((poses.keypoints[..., 2] >= 0) & (poses.keypoints[..., 2] <= 1)).all()


@pytest.mark.parametrize("pose_from", ["features", "crops"])
def test_images_of_one_pixel_and_crowds_of_given_boxes(weights, pose_from):
    settings = EstimatorSettings(pose_from, score_threshold=0.0, people_per_batch=40, crop_height=64, crop_width=64)
    estimator = pyposeext.load(weights, "cpu", settings=settings)
    poses = estimator.image(np.zeros((1, 1, 3), np.uint8))
    assert np.isfinite(poses.keypoints).all()
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    corners = np.random.default_rng(0).uniform(0, 40, (90, 2))
    boxes = np.concatenate([corners, corners + np.array([25, 40])], axis=1)
    crowd = estimator.image(image, boxes)
    np.testing.assert_allclose(estimator.image(image, boxes[40:42]).keypoints, crowd.keypoints[40:42], atol=1e-3)


@pytest.mark.parametrize("pose_from", ["features", "crops"])
def test_a_batch_of_frames_gives_the_same_as_one_by_one(weights, pose_from):
    images = np.random.default_rng(0).integers(0, 255, (3, 90, 120, 3), np.uint8)
    estimator = pyposeext.load(weights, "cpu", settings=EstimatorSettings(pose_from=pose_from, score_threshold=0.0))
    with torch.inference_mode():
        together = estimator._people([InputImage(image, n) for n, image in enumerate(images)], 0.0, tracked=False)
    assert sum(map(len, together)) > 0
    for poses, image in zip(together, images, strict=True):
        alone = estimator.image(image)
        np.testing.assert_allclose(poses.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(poses.keypoints, alone.keypoints, atol=1e-2)
        np.testing.assert_allclose(poses.scores, alone.scores, atol=1e-5)


def test_scores_of_given_boxes_are_the_peoples():
    poses = RCNNEstimator(BrightSpotModel()).image(spot((200, 100, 280, 300)), [[190, 90, 290, 310]], [0.4])
    assert poses.scores.tolist() == pytest.approx([0.4])


def test_what_cannot_be_loaded_is_one_sentence(weights, tmp_path, monkeypatch):
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    save_weights(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"model": "keypoint_rcnn_resnet50_fpn"})
    (tmp_path / "nothing_shipped").mkdir()
    monkeypatch.setattr("pyposeext.io.weights._SHIPPED", tmp_path / "nothing_shipped")
    for name, given, sentence in (
        ("default", None, "this installation has no default weights"),
        ("keypoint_rcnn_resnet50_fpn", None, "has no weights of the model keypoint_rcnn_resnet50_fpn"),
        ("nothing", None, "model must be one of default, hrnet_w16, "),
        (tmp_path / "none.safetensors", None, "does not exist"),
        (tmp_path / "text.safetensors", None, "not a safetensors file"),
        (tmp_path / "cut.safetensors", None, "damaged"),
        ("keypoint_rcnn_resnet50_fpn", weights, "are of the model keypoint_rcnn_efficientnet_lite0_fpn, not of"),
        (tmp_path / "other.safetensors", None, "do not fit"),
        (weights, weights, "weights were given twice"),
    ):
        with pytest.raises(InputError, match=sentence):
            load(name, "cpu", weights=given)
    for arguments, sentence in (({"device": "abacus"}, "device must be"), ({"threads": 0}, "threads must be")):
        with pytest.raises(InputError, match=sentence):
            load(weights, **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pose_from": "nowhere"}, "pose_from must be"),
        ({"maximum_people": 0}, "maximum_people must be"),
        ({"crop_width": 8}, "crops must be at least 32"),
    ],
)
def test_wrong_settings(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        EstimatorSettings(**arguments)


class BrokenModel(BrightSpotModel):
    """Gives no number for a coordinate of the joint `joint`, or of the box where that is None."""

    def __init__(self, joint):
        super().__init__()
        self.joint = joint

    def _detection(self, image):
        found = super()._detection(image)
        if self.joint is None:
            found["boxes"][:, 2] = torch.nan
        else:
            found["keypoints"][:, self.joint, 1] = torch.nan
        return found


@pytest.mark.parametrize("pose_from", ["features", "crops"])
@pytest.mark.parametrize("joint", [None, 3])
def test_people_without_numbers_are_left_out(pose_from, joint):
    estimator = RCNNEstimator(BrokenModel(joint), EstimatorSettings(pose_from=pose_from))
    assert len(estimator.image(spot((200, 100, 280, 300)))) == 0


def test_given_boxes_keep_their_rows_without_numbers():
    poses = RCNNEstimator(BrokenModel(3)).image(
        spot((200, 100, 280, 300)), boxes=[[190, 90, 290, 310], [180, 80, 300, 310]]
    )
    np.testing.assert_array_equal(poses.keypoints[:, 3], [[240, 200, 0], [240, 195, 0]])
    assert np.isfinite(poses.keypoints).all()
    np.testing.assert_allclose(poses.scores, poses.keypoints[..., 2].mean(axis=1), atol=1e-6)
    assert (poses.scores < 0.95).all()
