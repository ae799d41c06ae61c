"""Every pose format, written and read again."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from faster_coco_eval import COCO

from pyposeext.errors import InputError
from pyposeext.io.coco import CocoWriter, read_coco
from pyposeext.io.csv import COLUMNS, CsvWriter, read_csv
from pyposeext.io.posetrack import PoseTrackWriter, read_posetrack, to_posetrack18
from pyposeext.io.rle import mask_area
from pyposeext.skeletons import COCO17, LSP14, NO_JOINTS, POSETRACK18
from tests.io.poses import make_frames, make_poses, with_masks


def fill(writer, frames):
    for frame in frames:
        writer.write(frame)
    writer.close()


def assert_same(read, written, boxes=True):
    assert [frame.number for frame in read] == [frame.number for frame in written]
    np.testing.assert_allclose([frame.time for frame in read], [frame.time for frame in written], atol=1e-6)
    for one, other in zip(read, written, strict=True):
        np.testing.assert_allclose(one.poses.keypoints[..., :2], other.poses.keypoints[..., :2], atol=6e-4)
        np.testing.assert_allclose(one.poses.keypoints[..., 2], other.poses.keypoints[..., 2], atol=6e-5)
        if len(one.poses):
            np.testing.assert_array_equal(one.poses.ids, other.poses.ids)
        if boxes:
            np.testing.assert_allclose(one.poses.boxes, other.poses.boxes, atol=2e-3)
            np.testing.assert_allclose(one.poses.scores, other.poses.scores, atol=6e-5)


@pytest.mark.parametrize("tracked", [True, False])
def test_coco_comes_back(tmp_path, tracked):
    frames = make_frames(tracked)
    fill(CocoWriter(tmp_path / "a.json", COCO17), frames)
    assert_same(read_coco(tmp_path / "a.json"), frames)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_coco_is_what_the_field_reads(tmp_path):
    fill(CocoWriter(tmp_path / "a.json", COCO17, "clip"), make_frames())
    coco = COCO(str(tmp_path / "a.json"))
    assert len(coco.getImgIds()) == 5
    assert coco.loadImgs(2)[0]["file_name"] == "clip/000002.jpg"
    annotation = coco.loadAnns(coco.getAnnIds(imgIds=[2]))[0]
    assert len(annotation["keypoints"]) == 51
    scores = make_frames()[2].poses.keypoints[0, :, 2]
    assert annotation["keypoints"][2::3] == [2 if score >= 0.3 else 1 for score in scores]
    category = coco.loadCats(1)[0]
    assert category["keypoints"] == list(COCO17.names)
    assert category["skeleton"][0] == [16, 14]


@pytest.mark.parametrize("skeleton", [COCO17, NO_JOINTS])
def test_coco_keeps_masks(tmp_path, skeleton):
    frames = [frame._replace(poses=with_masks(frame.poses)) for frame in make_frames(skeleton=skeleton)]
    fill(CocoWriter(tmp_path / "a.json", skeleton), frames)
    again = read_coco(tmp_path / "a.json")
    assert_same(again, frames)
    for one, other in zip(again, frames, strict=True):
        assert (one.poses.masks or []) == other.poses.masks
    coco = COCO(str(tmp_path / "a.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        pixels = coco.annToMask(annotation)
        assert pixels.shape == (240, 320)
        assert annotation["area"] == pixels.sum() == mask_area(annotation["segmentation"])
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(pixels)
        np.testing.assert_allclose([columns.min(), rows.min()], [x, y], atol=1)
        ends = [min(x + width, 320), min(y + height, 240)]
        np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], ends, atol=1)


def test_csv_has_no_rows_of_people_without_joints(tmp_path):
    fill(CsvWriter(tmp_path / "a.csv", NO_JOINTS), make_frames(skeleton=NO_JOINTS))
    assert (tmp_path / "a.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert read_csv(tmp_path / "a.csv", NO_JOINTS) == []


def test_coco_goes_to_a_stream():
    stream = io.StringIO()
    fill(CocoWriter(stream, COCO17), make_frames())
    assert len(json.loads(stream.getvalue())["annotations"]) == 8


def test_coco_without_frames_is_valid(tmp_path):
    fill(CocoWriter(tmp_path / "a.json", COCO17), [])
    assert json.loads((tmp_path / "a.json").read_text())["images"] == []


def test_posetrack_comes_back(tmp_path):
    frames = make_frames(skeleton=POSETRACK18)
    for frame in frames:
        frame.poses.keypoints[:, 3:5] = 0
    fill(PoseTrackWriter(tmp_path / "a.json", POSETRACK18), frames)
    assert_same(read_posetrack(tmp_path / "a.json"), frames)


def test_posetrack_has_its_layout(tmp_path):
    frames = make_frames()
    fill(PoseTrackWriter(tmp_path / "a.json", COCO17, "clip"), frames)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["categories"][0]["keypoints"] == list(POSETRACK18.names)
    image = content["images"][2]
    assert (image["id"], image["frame_id"], image["vid_id"]) == (10000010002, 10000010002, "000001")
    assert (image["nframes"], image["is_labeled"], image["file_name"]) == (5, True, "images/clip/000002.jpg")
    annotation = [each for each in content["annotations"] if each["image_id"] == image["id"]][1]
    assert (annotation["id"], annotation["track_id"], annotation["category_id"]) == (1000001000201, 11, 1)
    person = frames[2].poses[[1]]
    head_bottom = person.keypoints[0, 5:7, :2].mean(axis=0)
    head_top = 2 * person.keypoints[0, 0, :2] - head_bottom
    keypoints = np.array(annotation["keypoints"]).reshape(17, 3)
    np.testing.assert_allclose(keypoints[1, :2], head_bottom, atol=1e-3)
    np.testing.assert_allclose(keypoints[2, :2], head_top, atol=1e-3)
    assert (keypoints[3:5] == 0).all()
    assert keypoints[:, 2].tolist() == [1, 1, 1, 0, 0, *[1] * 12]
    x, y, width, height = annotation["bbox_head"]
    assert width == height == pytest.approx(np.linalg.norm(head_top - head_bottom), abs=1e-2)
    np.testing.assert_allclose([x + width / 2, y + height / 2], (head_top + head_bottom) / 2, atol=1e-2)


def test_posetrack_wants_tracks_and_known_joints(tmp_path):
    writer = PoseTrackWriter(tmp_path / "a.json", COCO17)
    with pytest.raises(InputError, match="these poses have no ids"):
        writer.write(make_frames(tracked=False)[0])
    writer.discard()
    with pytest.raises(InputError, match="takes coco17 or posetrack18 joints, got 'lsp14'"):
        PoseTrackWriter(tmp_path / "a.json", LSP14)
    assert list(tmp_path.iterdir()) == []


def test_posetrack_joints_are_kept_as_they_are():
    poses = make_poses(2, skeleton=POSETRACK18)
    assert to_posetrack18(poses) is poses


@pytest.mark.parametrize("tracked", [True, False])
def test_csv_comes_back(tmp_path, tracked):
    frames = make_frames(tracked)
    fill(CsvWriter(tmp_path / "a.csv", COCO17), frames)
    assert_same(read_csv(tmp_path / "a.csv", COCO17), [frame for frame in frames if len(frame.poses)], boxes=False)


def test_csv_is_tidy(tmp_path):
    fill(CsvWriter(tmp_path / "a.csv", COCO17), make_frames())
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "frame,time,track,joint,x,y,score" == ",".join(COLUMNS)
    assert len(lines) == 1 + 8 * 17
    assert lines[1].split(",")[:4] == ["0", "0.000000", "10", "nose"]


def test_csv_of_other_joints_is_refused(tmp_path):
    fill(CsvWriter(tmp_path / "a.csv", COCO17), make_frames())
    with pytest.raises(InputError, match="the joints of the file are not those of 'posetrack18'"):
        read_csv(tmp_path / "a.csv", POSETRACK18)


@pytest.mark.parametrize("kind", [CocoWriter, PoseTrackWriter, CsvWriter])
def test_nothing_appears_before_close_and_nothing_stays_after_discard(tmp_path, kind):
    writer = kind(tmp_path / "a.out", COCO17)
    writer.write(make_frames()[0])
    assert not (tmp_path / "a.out").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [CocoWriter, PoseTrackWriter, CsvWriter])
def test_poses_with_other_joints_are_refused(tmp_path, kind):
    writer = kind(tmp_path / "a.out", COCO17)
    with pytest.raises(InputError, match="poses must have the joints of 'coco17', got 'lsp14'"):
        writer.write(make_frames(skeleton=LSP14)[0])
    writer.discard()


@pytest.mark.parametrize("reader", [read_coco, read_posetrack])
def test_a_file_that_is_no_json_is_one_sentence(tmp_path, reader):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="is not a JSON file"):
        reader(tmp_path / "a.json")
    with pytest.raises(InputError, match="no such file"):
        reader(tmp_path / "b.json")


@pytest.mark.parametrize("kind", [CocoWriter, PoseTrackWriter, CsvWriter])
@pytest.mark.parametrize("part", ["keypoints", "boxes", "scores"])
def test_numbers_that_are_none_are_refused_in_a_sentence(tmp_path, kind, part):
    frame = make_frames()[0]
    getattr(frame.poses, part)[1] = np.nan
    writer = kind(tmp_path / "a.out", COCO17)
    with pytest.raises(InputError, match=f"poses must be finite to be written, got {part} that are not in .*0"):
        writer.write(frame)
    writer.discard()
