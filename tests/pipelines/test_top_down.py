"""The top-down estimator: coordinates, scores, suppression, batches, videos."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import pyposeext
from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.models import create_model, register_model, registry
from pyposeext.models.weights import save_model
from pyposeext.pipelines.acceleration import accelerated
from pyposeext.pipelines.detectors import Detections, ModelDetector, resolve_detector
from pyposeext.pipelines.inputs import frames_and_table
from pyposeext.pipelines.rcnn import RCNNEstimator
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.pipelines.top_down import TopDownEstimator
from pyposeext.skeletons import COCO17, MPII16
from tests.io.videos import make_video
from tests.pipelines.fakes import BrightSpotModel, GivenBoxes, blob, bright_pose_model, numbers

SMALL = {"min_size": 64, "max_size": 96, "proposals": (20, 10), "detections_per_image": 4}
CENTRES = [(80, 100), (200, 120), (260, 60)]


def boxes_around(centres, half=(30, 40)):
    return np.array([[x - half[0], y - half[1], x + half[0], y + half[1]] for x, y in centres], np.float32)


def estimator_of(detector=None, model=None, **settings):
    return TopDownEstimator(model or bright_pose_model(), EstimatorSettings(**settings), detector=detector)


@pytest.mark.parametrize("flip_test", [True, False])
def test_joints_are_in_source_pixels(flip_test):
    poses = estimator_of(flip_test=flip_test).image(blob(CENTRES), boxes_around(CENTRES))
    # A pixel of the heatmap is 6.25 of the image: the quarter offset leaves a quarter of that, the flip test more.
    for person, centre in enumerate(CENTRES):
        np.testing.assert_allclose(poses.keypoints[person, :, :2], [centre] * 17, atol=3.2)
    np.testing.assert_array_equal(poses.boxes, boxes_around(CENTRES))
    assert ((poses.keypoints[..., 2] > 0.7) & (poses.keypoints[..., 2] <= 0.9)).all()


def test_scores_are_the_boxes_times_the_mean_of_the_joints():
    image, boxes = blob(CENTRES), boxes_around(CENTRES)
    alone = estimator_of().image(image, boxes)
    np.testing.assert_allclose(alone.scores, alone.keypoints[..., 2].mean(axis=1), rtol=1e-5)
    scored = estimator_of().image(image, boxes, [0.5, 0.9, 0.7])
    np.testing.assert_allclose(scored.scores, alone.scores * [0.5, 0.9, 0.7], rtol=1e-5)
    np.testing.assert_array_equal(scored.boxes, boxes)


def test_tracked_people_have_the_scores_of_their_boxes():
    estimator = estimator_of(GivenBoxes(boxes_around(CENTRES[:2]), [0.6, 0.9]))
    poses, _ = estimator.step(blob(CENTRES))
    np.testing.assert_allclose(sorted(poses.scores), [0.6, 0.9], rtol=1e-6)
    np.testing.assert_array_less(sorted(estimator.image(blob(CENTRES)).scores), [0.6, 0.9])


def test_one_person_found_twice_is_one():
    boxes = np.concatenate([boxes_around(CENTRES[:1]), boxes_around(CENTRES[:1], (24, 32))])
    estimator = estimator_of(GivenBoxes(boxes, [0.9, 0.8]), oks_threshold=1.0)
    assert len(estimator.image(blob(CENTRES))) == 1
    # What COCO's protocol does with the same boxes is another matter.
    assert len(estimator.people_in(blob(CENTRES), boxes, [0.9, 0.8])) == 2


def test_scores_are_clamped_to_one():
    model = bright_pose_model()
    with torch.no_grad():
        model.head.weight *= 3
    poses = estimator_of(model=model).image(blob(CENTRES), boxes_around(CENTRES))
    assert poses.keypoints[..., 2].max() == 1
    assert poses.scores.max() == 1
    # Clamped scores above 1 would tie in an evaluation.
    ranked = estimator_of(model=model).people_in(blob(CENTRES), boxes_around(CENTRES), [1, 1, 1])
    assert ranked.scores.min() > 1


def test_people_are_found_in_the_boxes_of_the_detector_best_first():
    detector = GivenBoxes(boxes_around(CENTRES), [0.6, 0.9, 0.2])
    poses = estimator_of(detector).image(blob(CENTRES))
    np.testing.assert_array_equal(poses.boxes, boxes_around([CENTRES[1], CENTRES[0]]))
    assert poses.scores[0] > poses.scores[1]
    assert len(estimator_of(detector, score_threshold=0.1).image(blob(CENTRES))) == 3
    assert len(estimator_of(detector, maximum_people=1).image(blob(CENTRES))) == 1


def test_the_same_pose_twice_is_one_person():
    boxes = np.concatenate([boxes_around(CENTRES), boxes_around(CENTRES[:1], (33, 44))])
    image, scores = blob(CENTRES), [0.8, 0.9, 0.7, 0.95]
    estimator = estimator_of()
    poses = estimator.people_in(image, boxes, scores)
    np.testing.assert_array_equal(poses.boxes, boxes[[3, 1, 2]])
    assert len(estimator_of(oks_threshold=1.0).people_in(image, boxes, scores)) == 4
    assert len(estimator.image(image, boxes, scores)) == 4  # given boxes keep their rows


def test_suppression_takes_the_areas_of_the_crops():
    estimator, image, boxes = estimator_of(), blob(CENTRES), boxes_around([(80, 100), (84, 100), (92, 100), (104, 100)])
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    every = estimator.image(image, boxes, scores)
    keypoints = torch.from_numpy(every.keypoints)
    regions = estimator.model.regions(torch.from_numpy(boxes))
    people = torch.from_numpy(every.scores)
    # Unlike the area of the box, that of the crop is 1.25 times as wide and high, and of the crop's shape.
    kept = ops.oks_nms(keypoints, people, regions[:, 2] * regions[:, 3], 0.9, COCO17.sigmas)
    np.testing.assert_array_equal(estimator.people_in(image, boxes, scores).boxes, boxes[kept.numpy()])
    assert regions[0, 2:].tolist() == [75, 100]


def test_without_sigmas_boxes_are_compared():
    estimator = estimator_of(model=bright_pose_model(MPII16), oks_threshold=0.8)
    boxes = boxes_around([(80, 100), (81, 100), (200, 120)])
    poses = estimator.people_in(blob(CENTRES), boxes, [0.5, 0.9, 0.7])
    np.testing.assert_array_equal(poses.boxes, boxes[[1, 2]])


def test_batches_of_people_change_nothing():
    image, boxes = blob(CENTRES), boxes_around(CENTRES * 3)
    scores = np.linspace(0.9, 0.3, 9)
    whole, parts = (estimator_of(people_per_batch=size).people_in(image, boxes, scores) for size in (64, 2))
    np.testing.assert_allclose(parts.keypoints, whole.keypoints, atol=1e-4)
    np.testing.assert_array_equal(parts.boxes, whole.boxes)


def test_three_hundred_people_go_through_in_batches():
    model, sizes = bright_pose_model(), []
    model.trunk.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    places = [(10 * (n % 30) + 10, 20 * (n // 30) + 20) for n in range(300)]
    detector = GivenBoxes(boxes_around(places, (5, 8)), np.full(300, 0.9))
    estimator = estimator_of(detector, model, maximum_people=300, people_per_batch=32, flip_test=False)
    assert len(estimator.image(blob(places, width=3))) == 300
    assert sizes == [32] * 9 + [12]


def test_a_batch_of_frames_gives_the_same_as_one_by_one():
    images = [blob([(80 + 9 * n, 100)]) for n in range(3)] + [blob([])]

    def find(image):
        row, column = np.unravel_index(image.image[..., 0].argmax(), image.image.shape[:2])
        seen = image.image.max() > 0
        return (boxes_around([(column, row), (column + 1, row)]), [0.8, 0.9]) if seen else ([], [])

    def inputs(chosen):
        from pyposeext.pipelines.inputs import InputImage

        return [InputImage(image, n) for n, image in enumerate(chosen)]

    estimator = estimator_of(GivenBoxes(find=find))
    together = estimator._people(inputs(images), 0.3, tracked=False)
    assert [len(poses) for poses in together] == [1, 1, 1, 0]
    for poses, image in zip(together, images, strict=True):
        alone = estimator.image(image)
        np.testing.assert_allclose(poses.keypoints, alone.keypoints, atol=1e-4)
        np.testing.assert_array_equal(poses.boxes, alone.boxes)
        np.testing.assert_allclose(poses.scores, alone.scores, atol=1e-6)


def test_images_of_different_sizes_go_together():
    images = [blob(CENTRES), blob(CENTRES[:1], (200, 180)), blob([], (50, 60))]
    found = [Detections(boxes_around(CENTRES[:count]), np.full(count, 0.9, np.float32)) for count in (3, 1, 0)]
    estimator = estimator_of()
    together = estimator._suppressed(images, found)
    for poses, image, each in zip(together, images, found, strict=True):
        alone = estimator.people_in(image, each.boxes, each.scores)
        np.testing.assert_allclose(poses.keypoints, alone.keypoints, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_models_stay_in_the_callers_thread(moving, compiled):
    threads = set()

    def find(image):
        threads.add(threading.current_thread() is threading.main_thread())
        return both(image)

    video = estimator_of(GivenBoxes(find=find), compiled=compiled, frames_per_batch=4).video(moving)
    assert [len(frame.poses) for frame in video] == [2] * 11
    assert threads == {compiled}


@pytest.fixture
def moving(tmp_path):
    """A bright blob that moves right, and one that moves up."""
    images = [blob([(40 + 8 * n, 60), (250, 200 - 8 * n)]) for n in range(11)]
    return make_video(tmp_path / "clip.mkv", size=(320, 240), images=images)


def both(image):
    shift = 8 * image.number
    return boxes_around([(40 + shift, 60), (250, 200 - shift)]), [0.9, 0.8]


@pytest.mark.parametrize(("frames_per_batch", "batches"), [(None, [[n] for n in range(11)]), (4, None)])
def test_a_video_is_tracked_in_order(moving, frames_per_batch, batches):
    detector = GivenBoxes(find=both)
    video = estimator_of(detector, frames_per_batch=frames_per_batch).video(moving, track=True)
    frames = list(video)
    assert video.complete
    assert numbers(frames) == list(range(11))
    assert detector.batches == (batches or [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]])
    for frame in frames:
        assert frame.poses.ids.tolist() == [0, 1]
        shift = 8 * frame.number
        np.testing.assert_allclose(frame.poses.keypoints[0, :, :2], [[40 + shift, 60]] * 17, atol=4)
        np.testing.assert_allclose(frame.poses.keypoints[1, :, :2], [[250, 200 - shift]] * 17, atol=4)


def test_steps_carry_the_ids_on():
    estimator, state, ids = estimator_of(GivenBoxes(boxes_around(CENTRES), [0.9, 0.9, 0.9])), None, []
    for _ in range(3):
        poses, state = estimator.step(blob(CENTRES), state)
        ids.append(poses.ids.tolist())
    assert ids == [[0, 1, 2]] * 3


def test_no_boxes_give_empty_poses():
    for poses in (
        estimator_of().image(blob([]), boxes=[]),
        estimator_of().people_in(blob([]), [], []),
        estimator_of(GivenBoxes()).image(blob([])),
    ):
        assert poses.keypoints.shape == (0, 17, 3)


def test_an_r_cnn_takes_the_boxes_of_another_detector():
    image = np.zeros((480, 640, 3), np.uint8)
    image[100:300, 200:280] = 255
    model = BrightSpotModel()
    detector = GivenBoxes([[190, 90, 290, 310], [0, 0, 9, 9]], [0.6, 0.1])
    poses = RCNNEstimator(model, detector=detector).image(image)
    assert model.calls == [[(3, 256, 192)]]
    np.testing.assert_array_equal(poses.boxes, [[190, 90, 290, 310]])
    assert poses.scores.tolist() == pytest.approx([0.6])
    np.testing.assert_allclose(poses.keypoints[0, :, 0], 239.5, atol=0.7)


def test_a_model_as_detector_finds_boxes_in_source_pixels():
    image = np.zeros((480, 640, 3), np.uint8)
    image[100:300, 200:280] = 255
    estimator = estimator_of(ModelDetector(BrightSpotModel(), torch.device("cpu")))
    np.testing.assert_allclose(estimator.image(image).boxes, [[200, 100, 280, 300]], atol=4.01)
    things = ModelDetector(BrightSpotModel(label=2), torch.device("cpu"))
    assert len(estimator_of(things).image(image)) == 0


@pytest.fixture
def registered(monkeypatch):
    """A top-down model, registered for one test."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @register_model()
    def bright_pose(height: int = 64) -> torch.nn.Module:
        """Finds what is bright."""
        return bright_pose_model(input_size=(height, 48))


def test_a_top_down_model_is_loaded_with_its_detector(registered, tmp_path):
    pose, boxes = tmp_path / "pose.safetensors", tmp_path / "boxes.safetensors"
    save_model(pose, create_model("bright_pose"))
    save_model(boxes, create_model("keypoint_rcnn_efficientnet_lite0_fpn", **SMALL), "float16")
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for word in (boxes, str(boxes), f"keypoint_rcnn_efficientnet_lite0_fpn:{boxes}"):
        estimator = pyposeext.load(pose, "cpu", detector=word, settings=EstimatorSettings(score_threshold=0.0))
        assert isinstance(estimator, TopDownEstimator)
        assert 0 < len(estimator.image(image)) <= 4
        record = estimator.describe()
        assert record["model"]["name"] == "bright_pose"
        assert record["detector"]["name"] == "keypoint_rcnn_efficientnet_lite0_fpn"
        assert len(record["detector"]["weights_sha256"]) == 64
    for word, sentence in (
        ("nothing", "detector must be one of default, .*keypoint_rcnn.* a .json or an .onnx file, got 'nothing'"),
        ("hrnet_w32", "detector must be one of default, .* got 'hrnet_w32'"),
        (pose, "detector must be one of default, .*pose.safetensors' is of bright_pose, which finds no boxes"),
        (tmp_path / "none.json", "no such file"),
        (tmp_path / "none.safetensors", "does not exist"),
    ):
        with pytest.raises(InputError, match=sentence):
            pyposeext.load(pose, "cpu", detector=word)


@pytest.mark.parametrize("word", ["nothing", "hrnet_w48", "boxes.jsn"])
def test_only_what_can_detect_is_offered_as_a_detector(word):
    with pytest.raises(InputError) as error:
        resolve_detector(word, torch.device("cpu"))
    offered = str(error.value).split(", got ")[0]
    assert "mask_rcnn_resnet50_c4_detectron2" in offered
    assert "hrnet" not in offered
    assert "simple_baseline" not in offered


def test_without_a_word_the_shipped_detector_is_taken(registered, tmp_path):
    save_model(tmp_path / "pose.safetensors", create_model("bright_pose"))
    estimator = pyposeext.load(tmp_path / "pose.safetensors", "cpu")
    assert estimator.detector.source["weights"].endswith("default.safetensors")
    assert pyposeext.load("default", "cpu").detector is None


@pytest.mark.parametrize(
    ("boxes", "scores", "sentence"),
    [
        ([[1, 2, np.nan, 4]], [1], "boxes must be finite"),
        ([[5, 2, 1, 4]], [1], "x2 > x1"),
        ([1, 2, 3, 4], [1], r"boxes must be \[N, 4\]"),
        ("abc", [1], r"boxes must be \[N, 4\] of numbers, got 'abc'"),
        ([[1, 2, 3, 4], [1, 2]], [1], r"boxes must be \[N, 4\] of numbers, got \[\[1, 2, 3, 4\], \[1, 2\]\]"),
        ([[1, 2, 3, 10**400]], [1], r"boxes must be \[N, 4\] of numbers"),
        ([[1, 2, 3, 1e300]], [1], "boxes must be finite"),
        ([[1, 2, 3, 4]], ["high"], r"scores must be 1 finite numbers, one for each box, got \['high'\]"),
        ([[1, 2, 3, 4]], [1, 1], "scores must be 1 finite numbers"),
        ([[1, 2, 3, 4]], [np.nan], "scores must be 1 finite numbers"),
    ],
)
def test_wrong_boxes_and_scores(boxes, scores, sentence):
    for call in (estimator_of().people_in, estimator_of().image):
        with pytest.raises(InputError, match=sentence):
            call(blob([]), boxes, scores)


@pytest.mark.parametrize("image", [np.zeros((9, 9, 4), np.uint8), np.zeros((0, 9, 3), np.uint8)])
def test_wrong_images(image):
    for call in (lambda: estimator_of().people_in(image, [], []), lambda: estimator_of(GivenBoxes()).image(image)):
        with pytest.raises(InputError, match="image must be RGB uint8"):
            call()


def test_without_a_detector_boxes_must_be_given():
    with pytest.raises(InputError, match="a top-down model needs boxes"):
        estimator_of().image(blob([]))


def test_boxes_outside_and_images_of_one_pixel_have_poses_of_nothing():
    for image, boxes in (
        (blob([]), [[1000, 1000, 1100, 1200], [-1e30, -1e30, 1e30, 1e30]]),
        (np.zeros((1, 1, 3), np.uint8), [[0, 0, 1, 1], [-5, -5, 5, 5]]),
    ):
        poses = estimator_of().image(image, boxes)
        assert np.isfinite(poses.keypoints).all()
        assert (poses.scores < 0.2).all()


def test_boxes_that_are_none_are_left_out():
    detector = GivenBoxes([[0, 0, np.nan, 9], [9, 9, 3, 20], [0, 0, 9, 9], [0, 0, 9, 9]], [0.9, 0.9, 0.9, np.nan])
    assert len(estimator_of(detector).image(blob([(4, 4)]))) == 1


def test_heatmaps_without_numbers_leave_nobody_but_given_boxes_their_rows():
    model = bright_pose_model()
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    poses = estimator_of(model=model).image(blob(CENTRES), boxes_around(CENTRES))
    # The flip test takes the other ear down with it.
    middles = [[*centre, 0] for centre in CENTRES]
    np.testing.assert_array_equal(poses.keypoints[:, [3, 4]], np.stack([middles, middles], axis=1))
    assert np.isfinite(poses.keypoints).all()
    np.testing.assert_allclose(poses.scores, poses.keypoints[:, 5, 2], rtol=1e-5)
    assert len(estimator_of(model=model).people_in(blob(CENTRES), boxes_around(CENTRES), [1, 1, 1])) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"decoding": "magic"}, "decoding must be"),
        ({"people_per_batch": 0}, "people_per_batch must be 1 or more"),
        ({"frames_per_batch": 0}, "frames_per_batch must be 1 or more"),
        ({"oks_threshold": 2.0}, "oks_threshold must be in 0..1"),
    ],
)
def test_wrong_settings(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        EstimatorSettings(**arguments)


def test_frames_and_boxes_travel_together():
    images = [np.random.default_rng(seed).integers(0, 256, (7, 5, 3), np.uint8) for seed in range(2)]
    table = np.arange(18, dtype=np.float64).reshape(3, 6)
    frames, boxes = frames_and_table(torch.device("meta"), images, table)
    assert (frames.shape, frames.dtype, boxes.shape, boxes.dtype) == ((2, 7, 5, 3), torch.uint8, (3, 6), torch.float64)
    frames, boxes = frames_and_table(torch.device("cpu"), images, table)
    np.testing.assert_array_equal(frames.numpy(), images)
    np.testing.assert_array_equal(boxes.numpy(), table)


def test_compiled_and_half_precision_models_find_the_same_joints():
    image, boxes = blob(CENTRES), boxes_around(CENTRES)
    expected = estimator_of().image(image, boxes)
    model = accelerated(bright_pose_model(), torch.device("cpu"), "bfloat16")
    half = estimator_of(model=model).image(image, boxes)
    # A pixel of the heatmap is 6.25 of the image, and equal neighbours decide the quarter offset.
    np.testing.assert_allclose(half.keypoints[..., :2], expected.keypoints[..., :2], atol=6.5)
    np.testing.assert_allclose(half.scores, expected.scores, atol=0.01)
    # Padding: three people become four, and the fourth is dropped.
    padded = estimator_of(compiled=True).image(image, boxes)
    np.testing.assert_array_equal(padded.keypoints, expected.keypoints)
