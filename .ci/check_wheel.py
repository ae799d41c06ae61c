"""Imports the installed wheel: its kernels run, its import is quick, its weights and command are there."""

from __future__ import annotations

import subprocess
import sys
import time

import torch

start = time.perf_counter()
import pyposeext  # noqa: E402

seconds = time.perf_counter() - start
assert seconds < 0.5, f"import pyposeext took {seconds:.2f} s beyond torch"

from pyposeext import ops  # noqa: E402

boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
assert ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
poses = pyposeext.load("default", device="cpu").image(torch.zeros(240, 320, 3, dtype=torch.uint8).numpy())
assert poses.keypoints.shape[1:] == (17, 3)
assert "default" in subprocess.run(["fresh/bin/pyposeext", "models"], capture_output=True, text=True, check=True).stdout
python = sys.version.split()[0]
print(
    f"pyposeext {pyposeext.__version__} imports in {seconds * 1e3:.0f} ms, torch {torch.__version__}, python {python}"
)
