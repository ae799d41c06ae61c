"""A tiny COCO-style set of drawn stick people, for tests that train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pyposeext.datasets import CocoKeypoints
from pyposeext.skeletons import COCO17

SIZE = 96
_X = [0, -1, 1, -2, 2, -5, 5, -8, 8, -9, 9, -3, 3, -4, 4, -4, 4]
_Y = [-28, -30, -30, -29, -29, -20, -20, -10, -10, 0, 0, 3, 3, 16, 16, 29, 29]


def write_people(folder: Path, count: int = 4, masks: bool = False) -> CocoKeypoints:
    """`count` images with one upright stick person each, and one image without people; masks are the whole boxes."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for number in range(1, count + 2):
        image = generator.integers(0, 60, (SIZE, SIZE, 3)).astype(np.uint8)
        if number <= count:
            points = np.stack([_X, _Y], axis=1) + generator.uniform(44, 52, 2)
            for a, b in COCO17.edges:
                ends = [tuple(int(value) for value in points[joint].round()) for joint in (a, b)]
                cv2.line(image, ends[0], ends[1], (90, 220, 250), 2)
            low, high = points.min(0) - 3, points.max(0) + 3
            keypoints = [value for x, y in points.tolist() for value in (x, y, 2)]
            annotation = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "num_keypoints": 17}
            size = (high - low).tolist()
            box = {"bbox": [*low.tolist(), *size], "area": size[0] * size[1], "keypoints": keypoints}
            if masks:
                (x1, y1), (x2, y2) = low.tolist(), high.tolist()
                box["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            content["annotations"].append({**annotation, **box})
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
    content["categories"] = [{"id": 1, "name": "person", "keypoints": list(COCO17.names), "skeleton": []}]
    (folder / "people.json").write_text(json.dumps(content))
    return CocoKeypoints(folder / "people.json", folder / "images")
