"""Augmentation moves pixels, boxes and joints alike."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pyposeext.datasets.sample import Sample
from pyposeext.skeletons import COCO17
from pyposeext.training.augment import (
    Augmentation,
    mirrored,
    random_appearance,
    random_mosaic,
    random_view,
    warp,
    warp_boxes,
)

POINTS = np.array([[30.0, 40.0], [90.0, 60.0], [55.0, 100.0]])
NOSE, LEFT_WRIST, RIGHT_WRIST = 0, 9, 10


def sample_with_dots(size: tuple[int, int] = (150, 120)) -> Sample:
    """Black, with a bright dot in a colour of its own at the nose and at each wrist."""
    image = np.zeros((*size, 3), np.float32)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for channel, (x, y) in enumerate(POINTS):
        image[:, :, channel] = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3.0**2))
    keypoints = np.zeros((1, 17, 3), np.float32)
    for joint, point in zip((NOSE, LEFT_WRIST, RIGHT_WRIST), POINTS, strict=True):
        keypoints[0, joint] = [*point, 2]
    box = np.array([[20, 30, 100, 110]], np.float32)
    area = np.array([3000], np.float32)
    return Sample(image.round().astype(np.uint8), box, keypoints, np.zeros((0, 4), np.float32), "dots", 1, area)


def dot(image: np.ndarray, channel: int) -> np.ndarray:
    """The centre of mass of one colour's dot."""
    weight = image[:, :, channel].astype(float)
    weight[weight < 20] = 0
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


BLACK = np.zeros((192, 160, 3), np.uint8)


@pytest.mark.parametrize("scale", [1.3, 0.7, 0.45, 0.3])
@pytest.mark.parametrize("degrees", [0, 25, -160])
@pytest.mark.parametrize("mirror", [False, True])
def test_joints_stay_on_their_pixels(scale: float, degrees: float, mirror: bool) -> None:
    cosine, sine = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    matrix = np.column_stack([linear, np.array([80.0, 96.0]) - linear @ [60, 70]])
    moved = warp(sample_with_dots(), matrix, (192, 160), COCO17, backdrop=BLACK)
    wrists = (RIGHT_WRIST, LEFT_WRIST) if mirror else (LEFT_WRIST, RIGHT_WRIST)
    for channel, joint in enumerate((NOSE, *wrists)):
        assert moved.keypoints[0, joint, 2] == 2
        assert moved.keypoints[0, joint, :2] == pytest.approx(dot(moved.image, channel), abs=0.25)


def test_mirroring_twice_gives_the_sample_back() -> None:
    sample = sample_with_dots()
    height, width = sample.image.shape[:2]
    mirror = np.array([[-1.0, 0, width - 1], [0, 1, 0]])
    once = warp(sample, mirror, (height, width), COCO17)
    assert np.array_equal(once.image, sample.image[:, ::-1])
    twice = warp(once, mirror, (height, width), COCO17)
    assert np.array_equal(twice.image, sample.image)
    assert twice.keypoints == pytest.approx(sample.keypoints)


def test_joints_outside_the_canvas_are_not_labelled_and_boxes_are_clipped() -> None:
    shift = np.array([[1.0, 0, -50], [0, 1, 0]])
    moved = warp(sample_with_dots(), shift, (150, 120), COCO17)
    assert moved.keypoints[0, NOSE].tolist() == [0, 0, 0]
    assert moved.keypoints[0, LEFT_WRIST].tolist() == [40, 60, 2]
    assert moved.boxes.tolist() == [[0, 30, 50, 110]]
    assert moved.areas == pytest.approx([3000 * 50 / 80])


def test_people_mostly_outside_become_regions_to_ignore() -> None:
    shift = np.array([[1.0, 0, -85], [0, 1, 0]])
    moved = warp(sample_with_dots(), shift, (150, 120), COCO17)
    assert len(moved.boxes) == len(moved.keypoints) == len(moved.areas) == 0
    assert moved.ignore.tolist() == [[0, 30, 15, 110]]


def test_rotated_boxes_follow_the_inscribed_ellipse() -> None:
    quarter = np.array([[0.0, -1, 0], [1, 0, 0]])
    assert warp_boxes(np.array([[0, 0, 40, 100]], np.float32), quarter).tolist() == [[-100, 0, 0, 40]]
    half = np.sqrt(0.5)
    eighth = np.array([[half, -half, 0], [half, half, 0]])
    x1, _, x2, _ = warp_boxes(np.array([[-20, -50, 20, 50]], np.float32), eighth)[0]
    assert x2 - x1 == pytest.approx(2 * np.sqrt((20**2 + 50**2) / 2), rel=1e-5)


def test_random_views_hold_what_they_say() -> None:
    settings = Augmentation()
    generator = np.random.default_rng(5)
    backdrop = np.full((64, 64, 3), 7, np.uint8)
    people = 0
    for _ in range(60):
        view = random_view(sample_with_dots(), (96, 128), COCO17, settings, generator, backdrop=backdrop)
        check_bounds(view, (96, 128))
        people += len(view.boxes)
    assert people > 50


def test_mosaics_put_every_tile_in_its_place() -> None:
    settings = Augmentation(rotate=0, flip=0, half_body=0, smallest=0.6, largest=0.7)
    generator = np.random.default_rng(1)
    for count in (4, 9):
        sample = sample_with_dots()
        sample.pose_boxes = sample.boxes.copy()
        mosaic = random_mosaic([sample] * count, (320, 320), COCO17, settings, generator)
        check_bounds(mosaic, (320, 320))
        assert len(mosaic.boxes) == count
        # Those of a single image would be neither its people's nor as many.
        assert mosaic.pose_boxes is None
        for keypoints in mosaic.keypoints:
            if keypoints[NOSE, 2]:
                x, y = keypoints[NOSE, :2].round().astype(int)
                assert mosaic.image[y, x].argmax() == 0
                assert mosaic.image[y, x, 0] > 150


def test_covered_joints_are_occluded_and_stay_where_they_are() -> None:
    settings = Augmentation(occlude=1, colour=1, blur=1)
    generator = np.random.default_rng(2)
    sample = sample_with_dots()
    seen = set()
    for _ in range(40):
        changed = random_appearance(sample, settings, generator)
        assert changed.image.shape == sample.image.shape
        assert changed.keypoints[:, :, :2] == pytest.approx(sample.keypoints[:, :, :2])
        assert ((changed.keypoints[:, :, 2] > 0) == (sample.keypoints[:, :, 2] > 0)).all()
        seen |= set(changed.keypoints[0, [NOSE, LEFT_WRIST, RIGHT_WRIST], 2].tolist())
    assert seen == {1.0, 2.0}
    assert np.array_equal(sample.image, sample_with_dots().image)


def sample_with_masks() -> Sample:
    """Two people who fill their boxes, the second a car in the data set's numbers."""
    sample = sample_with_dots()
    boxes = np.array([[20, 30, 100, 110], [10, 100, 50, 140]], np.float32)
    masks = np.zeros((2, *sample.image.shape[:2]), np.uint8)
    masks[0, 30:110, 20:100] = 1
    masks[1, 100:140, 10:50] = 1
    keypoints = np.concatenate([sample.keypoints, np.zeros_like(sample.keypoints)])
    areas = masks.sum((1, 2)).astype(np.float32)
    labels = np.array([1, 3])
    return replace(sample, boxes=boxes, keypoints=keypoints, masks=masks, areas=areas, labels=labels)


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("scale", [1.3, 0.7, 0.3])
@pytest.mark.parametrize("mirror", [False, True])
def test_masks_follow_boxes(scale: float, mirror: bool) -> None:
    matrix = np.array([[-scale if mirror else scale, 0, 150.0 if mirror else 10], [0, scale, -4]])
    moved = warp(sample_with_masks(), matrix, (200, 160), COCO17)
    assert moved.masks is not None
    assert moved.masks.shape == (2, 200, 160)
    assert moved.labels is not None
    assert moved.labels.tolist() == [1, 3]
    for mask, box, area in zip(moved.masks, moved.boxes, moved.areas, strict=True):
        assert extent(mask) == pytest.approx(box, abs=1.01)
        assert mask.sum() == pytest.approx(area, rel=0.09)
    assert moved.areas[0] == pytest.approx(6400 * scale**2, rel=1e-3)


def test_boxes_of_rotated_masks_are_their_extents() -> None:
    angle = np.deg2rad(30)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, np.array([100.0, 100]) - linear @ [60, 70]])
    moved = warp(sample_with_masks(), matrix, (200, 200), COCO17)
    assert moved.masks is not None
    for mask, box in zip(moved.masks, moved.boxes, strict=True):
        assert extent(mask) == box.tolist()
    # The corners of a square of 80, turned by 30 degrees.
    assert moved.boxes[0, 2] - moved.boxes[0, 0] == pytest.approx(80 * (np.cos(angle) + np.sin(angle)), abs=2)


def test_the_part_of_a_mask_outside_the_canvas_counts_neither_for_area_nor_for_staying() -> None:
    sample = sample_with_masks()
    moved = warp(sample, np.array([[1.0, 0, -40], [0, 1, 0]]), (150, 120), COCO17)
    assert moved.masks is not None
    assert moved.labels is not None
    assert moved.labels.tolist() == [1, 3]
    assert moved.boxes.tolist() == [[0, 30, 60, 110], [0, 100, 10, 140]]
    assert moved.areas[0] == pytest.approx(60 * 80)
    assert moved.masks[0].sum() == 60 * 80
    moved = warp(sample, np.array([[1.0, 0, -45], [0, 1, 0]]), (150, 120), COCO17)
    assert moved.labels is not None
    assert moved.labels.tolist() == [1]
    assert moved.ignore.tolist() == [[0, 100, 5, 140]]


def test_mosaics_keep_masks_in_their_tiles() -> None:
    settings = Augmentation(rotate=0, flip=0, half_body=0)
    generator = np.random.default_rng(6)
    plain = replace(sample_with_dots(), boxes=np.zeros((0, 4), np.float32), keypoints=np.zeros((0, 17, 3), np.float32))
    plain = replace(plain, areas=np.zeros(0, np.float32))
    mosaic = random_mosaic([sample_with_masks()] * 3 + [plain], (320, 320), COCO17, settings, generator)
    assert mosaic.masks is not None
    assert mosaic.labels is not None
    assert len(mosaic.masks) == len(mosaic.boxes) == len(mosaic.labels) > 2
    for mask, box in zip(mosaic.masks, mosaic.boxes, strict=True):
        # Boxes end at pixel centres of the source, masks half a pixel beyond: enlarged, that is more than one.
        assert extent(mask) == pytest.approx(box, abs=2)
    # Somebody without a mask leaves the canvas without masks.
    mosaic = random_mosaic([sample_with_masks()] * 3 + [sample_with_dots()], (320, 320), COCO17, settings, generator)
    assert mosaic.masks is None
    assert mosaic.labels is not None


def test_patches_end_masks_and_shrink_areas() -> None:
    settings = Augmentation(occlude=1, colour=0, blur=0)
    sample = sample_with_masks()
    assert sample.masks is not None
    before = sample.masks.copy()
    covered = 0
    for seed in range(20):
        changed = random_appearance(sample, settings, np.random.default_rng(seed))
        assert changed.masks is not None
        assert (changed.masks <= before).all()
        assert changed.areas == pytest.approx(changed.masks.sum((1, 2)))
        same = (changed.image == sample.image).all(axis=2)
        # Whatever of a mask is left shows the person still.
        assert same[changed.masks.any(axis=0)].all()
        covered += int(changed.masks.sum() < before.sum())
    assert covered > 15
    assert np.array_equal(sample.masks, before)


def test_the_mirror_image_of_a_whole_image() -> None:
    sample = sample_with_masks()
    once = mirrored(sample, COCO17)
    assert np.array_equal(once.image, sample.image[:, ::-1])
    assert once.boxes.tolist() == [[20, 30, 100, 110], [70, 100, 110, 140]]
    assert once.masks is not None
    assert [extent(mask) for mask in once.masks] == once.boxes.astype(int).tolist()
    assert once.keypoints[0, RIGHT_WRIST].tolist() == [119 - 90, 60, 2]
    twice = mirrored(once, COCO17)
    assert np.array_equal(twice.image, sample.image)
    assert np.array_equal(twice.keypoints, sample.keypoints)
    assert np.array_equal(twice.boxes, sample.boxes)


def check_bounds(sample: Sample, size: tuple[int, int]) -> None:
    assert sample.image.shape == (*size, 3)
    assert sample.image.dtype == np.uint8
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= [size[1], size[0]] * 2).all()
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    labelled = sample.keypoints[sample.keypoints[:, :, 2] > 0]
    assert (labelled[:, :2] >= -0.5).all()
    assert (labelled[:, :2] <= [size[1] - 0.5, size[0] - 0.5]).all()


def test_opencv_is_not_left_changed() -> None:
    threads = cv2.getNumThreads()
    random_view(sample_with_dots(), (64, 64), COCO17, Augmentation(), np.random.default_rng(0))
    assert cv2.getNumThreads() == threads
