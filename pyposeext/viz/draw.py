"""Skeletons and masks drawn over an image, with a colour and a label per track, legible from 320x240 upward."""

from __future__ import annotations

import colorsys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.io.rle import decode_segmentation
from pyposeext.structures import Poses

Colour = tuple[int, int, int]

_GOLDEN_RATIO = 0.618034
_LEFT, _RIGHT, _MIDDLE = (255, 150, 40), (60, 170, 255), (120, 230, 120)
_OUTLINE = (20, 20, 20)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SUBPIXEL_BITS = 4
_MASK_SHARE = 0.4


def track_colour(track: int) -> Colour:
    """RGB of a track: neighbouring ids differ strongly in hue, and all are bright."""
    hue = (0.05 + track * _GOLDEN_RATIO) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 + 0.2 * (track // 7 % 2), 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def side_colour(name: str) -> Colour:
    """RGB of a joint or limb by the side its name begins with: left orange, right blue, else green."""
    return _LEFT if name.startswith("left_") else _RIGHT if name.startswith("right_") else _MIDDLE


def draw_poses(
    image: NDArray[np.uint8],
    poses: Poses,
    *,
    keypoint_threshold: float = 0.3,
    boxes: bool = False,
    labels: bool = True,
    masks: bool = True,
) -> NDArray[np.uint8]:
    """A copy of the image with the people drawn on it.

    Limbs have the colour of the track, or where people have no ids that of their side; joints are dots in the colour of
    their side. Every line has a dark outline, so that it shows on any ground; widths grow with the image.

    Args:
        image: RGB uint8 [H, W, 3].
        poses: N people, in the image's pixels.
        keypoint_threshold: joints with a lower score, and limbs that end in them, are not drawn.
        boxes: whether to draw the boxes; those of people without joints are drawn in any case.
        labels: whether to write the id of each person who has one.
        masks: whether to fill the masks of people who have them, translucently and with an outline, in the colour of
            the track or green.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        InputError: an image that is not so, or masks of another size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    canvas: Any = np.ascontiguousarray(image).copy()
    width = max(1.0, min(image.shape[:2]) / 300)
    order = np.argsort(poses.scores, kind="stable").tolist()
    if masks and poses.masks is not None:
        for person in order:
            _draw_mask(canvas, poses, person, width)
    for person in order:
        if boxes or not len(poses.skeleton):
            _draw_box(canvas, poses, person, width)
        _draw_skeleton(canvas, poses, person, keypoint_threshold, width)
    if labels and poses.ids is not None:
        for person in order:
            _draw_label(canvas, poses, person, keypoint_threshold, width)
    return canvas


def _draw_skeleton(canvas: Any, poses: Poses, person: int, threshold: float, width: float) -> None:
    keypoints, skeleton = poses.keypoints[person], poses.skeleton
    colour = None if poses.ids is None else track_colour(int(poses.ids[person]))
    shown = (keypoints[:, 2] >= threshold) & np.isfinite(keypoints).all(axis=1)
    points = _fixed_point(keypoints[:, :2], canvas.shape)
    limbs = [(a, b) for a, b in skeleton.edges if shown[a] and shown[b]]
    line, outline = max(1, round(width)), max(1, round(width)) + 2 * max(1, round(width / 3))
    radius = round(max(1.2, 1.1 * width) * (1 << _SUBPIXEL_BITS))
    for a, b in limbs:
        cv2.line(canvas, points[a], points[b], _OUTLINE, outline, cv2.LINE_AA, _SUBPIXEL_BITS)
    for a, b in limbs:
        one_side = skeleton.names[a].split("_")[0] == skeleton.names[b].split("_")[0]
        limb = colour or (side_colour(skeleton.names[a]) if one_side else _MIDDLE)
        cv2.line(canvas, points[a], points[b], limb, line, cv2.LINE_AA, _SUBPIXEL_BITS)
    border = round(max(1.0, width / 2) * (1 << _SUBPIXEL_BITS))
    for joint in np.flatnonzero(shown):
        cv2.circle(canvas, points[joint], radius + border, _OUTLINE, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.circle(canvas, points[joint], radius, side_colour(skeleton.names[joint]), -1, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_mask(canvas: Any, poses: Poses, person: int, width: float) -> None:
    assert poses.masks is not None
    mask = poses.masks[person]
    if tuple(mask["size"]) != canvas.shape[:2]:
        raise InputError(f"masks must have the image's size {list(canvas.shape[:2])}, got {list(mask['size'])}")
    filled = decode_segmentation(mask, *canvas.shape[:2])
    rows, columns = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
    if len(rows) == 0:
        return
    top, left = int(rows[0]), int(columns[0])
    cut = np.ascontiguousarray(filled[top : rows[-1] + 1, left : columns[-1] + 1])
    part = canvas[top : top + cut.shape[0], left : left + cut.shape[1]]
    colour = _person_colour(poses, person)
    inside = cut > 0
    part[inside] = np.rint((1 - _MASK_SHARE) * part[inside] + _MASK_SHARE * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(cut, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(left, top))
    thickness = max(1, round(width / 2))
    cv2.drawContours(canvas, outlines, -1, _OUTLINE, thickness + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, colour, thickness, cv2.LINE_AA)


def _draw_box(canvas: Any, poses: Poses, person: int, width: float) -> None:
    box = poses.boxes[person]
    if not np.isfinite(box).all():
        return
    colour = _person_colour(poses, person)
    first, last = _fixed_point(box.reshape(2, 2), canvas.shape)
    thickness = max(1, round(width / 2))
    cv2.rectangle(canvas, first, last, _OUTLINE, thickness + 2, cv2.LINE_AA, _SUBPIXEL_BITS)
    cv2.rectangle(canvas, first, last, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_label(canvas: Any, poses: Poses, person: int, threshold: float, width: float) -> None:
    """The id on a plate in the track's colour, above the highest joint shown or, without one, at the box's corner."""
    assert poses.ids is not None
    keypoints = poses.keypoints[person]
    shown = keypoints[(keypoints[:, 2] >= threshold) & np.isfinite(keypoints).all(axis=1)]
    anchor = shown[np.argmin(shown[:, 1]), :2] if len(shown) else poses.boxes[person, :2]
    if not np.isfinite(anchor).all():
        return
    text = str(int(poses.ids[person]))
    scale = max(0.38, 0.2 * width)
    thickness = max(1, round(scale * 1.6))
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = max(2, round(width))
    height, room = canvas.shape[0], canvas.shape[1]
    left = int(np.clip(anchor[0] - text_width / 2 - pad, 0, max(0, room - text_width - 2 * pad)))
    bottom = int(np.clip(anchor[1] - 4 * width - pad, text_height + 2 * pad, height - 1))
    colour = track_colour(int(poses.ids[person]))
    cv2.rectangle(canvas, (left, bottom - text_height - 2 * pad), (left + text_width + 2 * pad, bottom), colour, -1)
    ink = _OUTLINE if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else (255, 255, 255)
    cv2.putText(canvas, text, (left + pad, bottom - pad), _FONT, scale, ink, thickness, cv2.LINE_AA)


def _person_colour(poses: Poses, person: int) -> Colour:
    return _MIDDLE if poses.ids is None else track_colour(int(poses.ids[person]))


def _fixed_point(points: NDArray[np.float32], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Points [K, 2] in OpenCV's fixed point, kept within a few images of the canvas so that nothing overflows."""
    size = np.array([shape[1], shape[0]], dtype=np.float64)
    near = np.clip(np.nan_to_num(points.astype(np.float64)), -3 * size, 4 * size)
    return [(x, y) for x, y in np.rint(near * (1 << _SUBPIXEL_BITS)).astype(int).tolist()]
