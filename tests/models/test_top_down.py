from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.layers.person_crops import crop_matrices, inverse_matrices
from pyposeext.models.top_down import HeatmapHead, TopDownPose
from pyposeext.skeletons import COCO17, MPII16, POSETRACK17, skeleton_of

SIZES = [(256, 192), (384, 288), (256, 256)]


class EveryFourthPixel(nn.Module):
    """A trunk that sees what a heatmap's pixels stand for."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return [images[:, :1, ::4, ::4] * self.scale]


class Repeat(nn.Module):
    """A head that gives each joint the same map."""

    def __init__(self, joints):
        super().__init__()
        self.joints = joints

    def forward(self, features):
        return features[0].repeat(1, self.joints, 1, 1)


def model_of(skeleton=COCO17, input_size=(256, 192), **options):
    return TopDownPose(EveryFourthPixel(), Repeat(len(skeleton)), skeleton, input_size, **options).eval()


def random_heatmaps(shape, seed=0):
    """Noise with a peak here and there, also at the borders, and some maps without a positive value."""
    generator = torch.Generator().manual_seed(seed)
    heatmaps = torch.randn(*shape, generator=generator) * 0.1
    rows = torch.randint(0, shape[2], shape[:2], generator=generator)
    columns = torch.randint(0, shape[3], shape[:2], generator=generator)
    for b in range(shape[0]):
        for k in range(shape[1]):
            heatmaps[b, k, rows[b, k], columns[b, k]] += 1
    heatmaps[0, 3] = -heatmaps[0, 3].abs()
    heatmaps[1, 5] = 0
    return heatmaps


def published_average(heatmaps, mirrored, pairs):
    """The flip test of lib/core/function.py: mirrored back, pairs swapped, one pixel to the right, averaged."""
    back = mirrored[..., ::-1].copy()
    for left, right in pairs:
        back[:, [left, right]] = back[:, [right, left]]
    shifted = back.copy()
    shifted[..., 1:] = back[..., :-1]
    return (heatmaps + shifted) * np.float32(0.5)


def published_decoding(heatmaps, regions):
    """lib/core/inference.py: the first maximum, a quarter of a pixel, and back to the image with the heatmap's size."""
    batch, joints, height, width = heatmaps.shape
    keypoints, scores = np.zeros((batch, joints, 2)), np.zeros((batch, joints))
    for b in range(batch):
        x, y, region_width, _ = regions[b]
        pixel = region_width / width
        for k in range(joints):
            map = heatmaps[b, k]
            row, column = np.unravel_index(np.argmax(map), map.shape)
            scores[b, k] = map[row, column]
            if scores[b, k] <= 0:
                row, column = 0, 0
            place = np.array([column, row], dtype=np.float64)
            px, py = math.floor(place[0] + 0.5), math.floor(place[1] + 0.5)
            if 1 < px < width - 1 and 1 < py < height - 1:
                place += 0.25 * np.sign([map[py, px + 1] - map[py, px - 1], map[py + 1, px] - map[py - 1, px]])
            keypoints[b, k] = (place - [width / 2, height / 2]) * pixel + [x, y]
    return keypoints, scores


@pytest.mark.parametrize("input_size", SIZES)
@pytest.mark.parametrize("skeleton", [COCO17, MPII16])
@pytest.mark.parametrize("flip", [False, True])
def test_decoding_equals_the_released_code(input_size, skeleton, flip):
    model = model_of(skeleton, input_size)
    shape = (4, len(skeleton), *model.heatmap_size)
    heatmaps, mirrored = random_heatmaps(shape), random_heatmaps(shape, 1)
    if flip:
        mirrored[0], mirrored[1] = -mirrored[0].abs(), 0
    regions = model.regions(torch.tensor([[10.0, 20, 110, 260], [300, 5, 380, 60], [-20, -9, 40, 70], [0, 0, 9, 700]]))
    matrices = crop_matrices(regions, input_size)
    found, scores = model.decode(heatmaps, matrices, mirrored if flip else None)
    maps = heatmaps.numpy()
    if flip:
        maps = published_average(maps, mirrored.numpy(), skeleton.flip_pairs)
    expected, expected_scores = published_decoding(maps, regions.numpy())
    assert np.abs(scores.numpy() - expected_scores).max() < 1e-6
    assert np.abs(found.numpy() - expected).max() < 2e-4
    corner = model.decode(torch.full((1, *shape[1:]), -1.0), matrices[:1])[0]
    torch.testing.assert_close(corner[0, 0].double(), inverse_matrices(matrices[:1])[0, :, 2], atol=1e-3, rtol=0)


def test_decoding_in_pixels_of_the_crop():
    model = model_of()
    heatmaps = torch.zeros(1, 17, 64, 48)
    heatmaps[:, :, 20, 30] = 1.0
    heatmaps[:, 1, 20, 31] = 0.5
    heatmaps[:, 2, 19, 30] = 0.5
    keypoints, scores = model.decode(heatmaps)
    assert scores.tolist() == [[1.0] * 17]
    assert keypoints[0, :3].tolist() == [[120, 80], [121, 80], [120, 79]]
    assert model.decode(heatmaps, decoding="none")[0][0, 1].tolist() == [120, 80]


@pytest.mark.parametrize(("column", "row", "moves"), [(1, 9, False), (2, 9, True), (46, 9, True), (47, 9, False)])
def test_quarter_offsets_stop_short_of_the_border(column, row, moves):
    heatmaps = torch.zeros(1, 17, 64, 48)
    heatmaps[0, :, row, column] = 1.0
    heatmaps[0, :, row, column - 1] = heatmaps[0, :, row + 1, column] = 0.5
    place = model_of().decode(heatmaps)[0][0, 0] / 4
    offset = [-0.25, 0.25] if moves else [0, 0]
    assert place.tolist() == [column + offset[0], row + offset[1]]


@pytest.mark.parametrize(("input_size", "sigma", "kernel"), [(SIZES[0], 2, 11), (SIZES[1], 3, 17), (SIZES[2], 2, 11)])
def test_sigma_and_darks_blur_follow_the_heatmap(input_size, sigma, kernel):
    model = model_of(input_size=input_size, decoding="dark")
    assert model.heatmap_size == (input_size[0] // 4, input_size[1] // 4)
    assert model.sigma == sigma
    heatmaps = random_heatmaps((2, 17, *model.heatmap_size))
    found, _ = model.decode(heatmaps)
    expected, _ = ops.heatmap_argmax(heatmaps, "dark", blur_kernel=kernel, nonpositive="zero")
    torch.testing.assert_close(found, 4 * expected, atol=1e-4, rtol=0)
    assert (found - model.decode(heatmaps, decoding="none")[0]).abs().max() > 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 20.0])
def test_dark_works_with_any_sigma(sigma):
    keypoints, _ = model_of(sigma=sigma).decode(random_heatmaps((2, 17, 64, 48)), decoding="dark")
    assert torch.isfinite(keypoints).all()


def target_of(centre, sigma, height, width):
    """The target of one joint as lib/dataset/JointsDataset.py draws it, and whether it keeps its weight."""
    column, row = (int(value + 0.5) for value in centre)
    reach = 3 * sigma
    target = np.zeros((height, width), np.float32)
    if column - reach >= width or row - reach >= height or column + reach + 1 < 0 or row + reach + 1 < 0:
        return target, False
    axis = np.arange(2 * reach + 1, dtype=np.float32) - reach
    patch = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    for y in range(max(0, row - reach), min(height, row + reach + 1)):
        for x in range(max(0, column - reach), min(width, column + reach + 1)):
            target[y, x] = patch[y - row + reach, x - column + reach]
    return target, True


def targets_of(keypoints, weights, sigma, height, width):
    """Targets [B, K, h, w] and weights [B, K] of keypoints in pixels of the crop."""
    batch, joints = weights.shape
    targets, kept = torch.zeros(batch, joints, height, width), weights.clone()
    for b in range(batch):
        for k in range(joints):
            target, inside = target_of(keypoints[b, k, :2].double().numpy() / 4, sigma, height, width)
            targets[b, k] = torch.from_numpy(target) * (weights[b, k] > 0)
            kept[b, k] *= inside
    return targets, kept


def published_losses(heatmaps, targets, weights):
    """[B, K], half of the mean squared error of each map, the weight inside the square."""
    return 0.5 * ((heatmaps - targets) * weights[..., None, None]).square().mean(dim=(2, 3))


def random_keypoints(batch, joints, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(batch, joints, 2, generator=generator) * (torch.tensor([size[1], size[0]]) + 120) - 60
    # Those that int() rounds to the edge where floor() does not.
    keypoints[0, 0] = torch.tensor([-4.0, 40])
    keypoints[0, 1] = torch.tensor([40, -3.0])
    return keypoints


@pytest.mark.parametrize("input_size", SIZES)
@pytest.mark.parametrize("hard_joints", [None, 8])
def test_the_loss_equals_the_released_one(input_size, hard_joints):
    model = model_of(input_size=input_size, hard_joints=hard_joints)
    height, width = model.heatmap_size
    keypoints = random_keypoints(3, 17, input_size)
    weights = torch.tensor([0.0, 1, 1, 1.5]).repeat(13)[: 3 * 17].reshape(3, 17)
    weights[0, :2] = 1
    heatmaps = (torch.randn(3, 17, height, width) * 0.1).requires_grad_()
    found = model.loss(heatmaps, keypoints, weights)
    targets, kept = targets_of(keypoints, weights, round(model.sigma), height, width)
    assert 0.3 < ((kept > 0) & (weights > 0)).float().sum() / (weights > 0).sum() < 1
    losses = published_losses(heatmaps, targets, kept)
    if hard_joints is None:
        expected = sum(losses[:, joint].mean() for joint in range(17)) / 17
    else:
        expected = torch.stack(
            [sample.sort(descending=True).values[:hard_joints].sum() / 8 for sample in losses]
        ).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    ours, theirs = torch.autograd.grad(found, heatmaps)[0], torch.autograd.grad(expected, heatmaps)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("centre", "kept", "pixels"),
    [
        ((20, 30), 1, 13 * 13),
        ((0, 0), 1, 7 * 7),
        ((47, 63), 1, 7 * 7),
        # int(x + 0.5) makes -3 to -2, and so on.
        ((-3, 30), 1, 5 * 13),
        ((-7, 30), 1, 1 * 13),
        ((-8, 30), 1, 0),  # its patch ends one pixel before the map, and yet it counts
        ((-9, 30), 0, 0),
        ((53, 30), 1, 1 * 13),
        ((54, 30), 0, 0),
        ((20, 69), 1, 13 * 1),
        ((20, 70), 0, 0),
        ((20, -9), 0, 0),
    ],
)
def test_targets(centre, kept, pixels):
    """13 x 13 pixels with a peak of exactly 1, cut at the border; a joint whose patch lies outside does not count."""
    target, inside = target_of(centre, 2, 64, 48)
    assert (int(inside), int((target > 0).sum())) == (kept, pixels)
    if 0 <= centre[0] < 48 and 0 <= centre[1] < 64:
        assert (target == 1).sum() == 1
        assert target[centre[1], centre[0]] == 1
    model = model_of(skeleton_of(1))
    keypoints = torch.tensor([[centre]]) * 4.0
    exact = torch.from_numpy(target)[None, None]
    assert model.loss(exact, keypoints, torch.ones(1, 1)) < 1e-14
    # One more everywhere costs 1/2 where the joint counts, and nothing where it does not.
    assert model.loss(exact + 1, keypoints, torch.ones(1, 1)).item() == pytest.approx(0.5 * kept)
    if pixels == 13 * 13:
        place, score = model.decode(exact, decoding="none")
        assert (place / 4).tolist() == [[list(centre)]]
        assert score.item() == 1
        assert torch.equal(model.decode(exact)[0], place)  # a symmetric peak has no quarter


def test_a_target_between_pixels_is_found_within_half_a_pixel():
    model = model_of(skeleton_of(1))
    for shift in torch.linspace(0, 3.9, 14):
        keypoints = torch.tensor([[[100.0, 120]]]) + shift
        maps, _ = ops.gaussian_heatmaps(keypoints / 4, None, (64, 48), 2.0)
        assert (model.decode(maps)[0] - keypoints).abs().max() <= 2


def test_vectors_of_the_loss():
    torch.manual_seed(0)
    model = model_of(skeleton_of(1))
    heatmaps, keypoints = torch.rand(4, 1, 64, 48), torch.rand(4, 1, 2) * 180
    weights = torch.ones(4, 1)
    targets, _ = targets_of(keypoints, weights, 2, 64, 48)
    whole = model.loss(heatmaps, keypoints, weights)
    torch.testing.assert_close(whole, 0.5 * nn.functional.mse_loss(heatmaps, targets), rtol=1e-5, atol=0)
    same = heatmaps[:1].repeat(4, 1, 1, 1), keypoints[:1].repeat(4, 1, 1)
    every, half = model.loss(*same, weights), model.loss(*same, torch.tensor([[1.0], [0], [1], [0]]))
    torch.testing.assert_close(half, every / 2)
    torch.testing.assert_close(model.loss(*same, weights * 1.5), every * 2.25)


def test_visibility_and_weights_of_the_targets():
    model = model_of().train()
    crops = torch.randn(2, 3, 256, 192)
    keypoints = torch.cat([torch.rand(2, 17, 2) * 180, torch.zeros(2, 17, 1)], dim=2)
    keypoints[0, :4, 2], keypoints[1, 5:9, 2] = 1, 2
    keypoints[0, 9:] = torch.nan  # never labelled, so never looked at
    weights = torch.linspace(0.5, 1.5, 17)
    loss = model(list(crops), [{"keypoints": keypoints[0]}, {"keypoints": keypoints[1].double(), "weights": weights}])
    expected = torch.zeros(2, 17)
    expected[0, :4], expected[1, 5:9] = 1, weights[5:9]
    heatmaps = model.head(model.trunk(crops))
    assert list(loss) == ["loss_heatmap"]
    torch.testing.assert_close(loss["loss_heatmap"], model.loss(heatmaps, keypoints[..., :2], expected))
    loss["loss_heatmap"].backward()
    assert torch.isfinite(model.trunk.scale.grad)
    assert model.trunk.scale.grad != 0


def test_the_flip_test_moves_the_mirrored_maps_by_a_pixel():
    """Every fourth pixel of a mirrored crop is not the mirror of every fourth pixel: that is what the shift is for."""
    model = model_of()
    heatmaps = random_heatmaps((2, 17, 64, 48))
    mirrored = heatmaps.flip(3)[:, list(COCO17.flip_order)]
    _, alone = model.decode(heatmaps)
    _, averaged = model.decode(heatmaps, None, mirrored)
    shifted = torch.cat([heatmaps[..., :1], heatmaps[..., :-1]], dim=3)
    torch.testing.assert_close(averaged, ((heatmaps + shifted) / 2).amax(dim=(2, 3)))
    assert not torch.equal(alone, averaged)
    # Column 1 reads what column 0 held before the shift: a peak in the last column of the mirrored map stands in both.
    last = torch.zeros(1, 17, 64, 48)
    last[..., 7, 47] = 1.0
    place, score = model.decode(torch.zeros_like(last), None, last, "none")
    assert score.tolist() == [[0.5] * 17]
    assert place[0, 0].tolist() == [0, 28]
    edge = torch.zeros_like(last)
    edge[..., 7, 2] = 0.1
    last[..., 7, 46] = 2.0  # goes to column 1 and then to column 2
    assert model.decode(edge, None, last, "none")[0][0, 0].tolist() == [8, 28]


@pytest.mark.parametrize("skeleton", [COCO17, MPII16, POSETRACK17])
def test_flipping_twice_changes_nothing(skeleton):
    order = torch.tensor(skeleton.flip_order)
    assert torch.equal(order[order], torch.arange(len(skeleton)))
    assert not torch.equal(order, torch.arange(len(skeleton)))
    heatmaps = torch.randn(1, len(skeleton), 8, 6)
    assert torch.equal(heatmaps.flip(3)[:, order].flip(3)[:, order], heatmaps)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("margin", [1.0, 1.25])
def test_from_the_image_and_back(flip, margin):
    """A bright spot in the image is found again through region, crop, heatmap and decoding."""
    model = model_of(margin=margin)
    model.mean, model.std = (0.0,) * 3, (1.0,) * 3
    y, x = torch.meshgrid(torch.arange(240.0), torch.arange(320.0), indexing="ij")
    frames = torch.stack([torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 98) for u, v in ((140, 90), (61, 160))])
    frames = (frames * 255).round().to(torch.uint8)[..., None].expand(2, 240, 320, 3)
    boxes = torch.tensor([[100.0, 30, 190, 170], [20, 100, 110, 220], [110, 60, 160, 140]])
    regions = model.regions(boxes)
    assert regions.shape == (3, 4)
    crops, matrices = model.crops(frames, regions, torch.tensor([0, 1, 0]))
    assert crops.shape == (3, 3, 256, 192)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    assert crops.dtype == torch.float32
    with torch.inference_mode():
        keypoints, scores = model.estimate(crops, matrices, flip)
    spots = torch.tensor([[140.0, 90], [61, 160], [140, 90]])
    pixel = 4 * regions[:, 2] / 192  # of the heatmap, in pixels of the image
    # The spot is symmetric, so half a pixel is the most that whole pixels can be off; the flip test blurs by as much.
    assert ((keypoints - spots[:, None]).abs().amax(dim=(1, 2)) <= (1.0 if flip else 0.5) * pixel + 0.1).all()
    assert (scores > 0.9).all()
    half, _ = model.crops(frames[0], regions[:1], dtype=torch.bfloat16, channels_last=False)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), crops[:1], atol=0.01, rtol=0)


def test_person_scores():
    model = model_of(skeleton_of(3))
    joints = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.2, 0.0], [1.2, 1.0, 0.8]])
    scores = model.person_scores(torch.tensor([0.5, 0.9, 1.0]), joints)
    torch.testing.assert_close(scores, torch.tensor([0.5 * (0.9 + 0.3) / 2, 0.0, 1.0]))
    assert model.person_scores(torch.zeros(0), torch.zeros(0, 3)).shape == (0,)


def test_one_of_two_duplicates_is_left():
    model = model_of()
    torch.manual_seed(0)
    pose = torch.rand(17, 2) * 100
    keypoints = torch.stack([pose, pose + 0.5, pose + torch.tensor([80.0, 0])])
    joint_scores = torch.stack([torch.full((17,), value) for value in (0.6, 0.8, 0.7)])
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 100], [80, 0, 180, 100]])
    regions = model.regions(boxes)
    areas = regions[:, 2] * regions[:, 3]
    scores = model.person_scores(torch.tensor([0.9, 0.9, 0.9]), joint_scores)
    poses = torch.cat([keypoints, joint_scores[..., None]], dim=2)
    assert ops.oks_nms(poses, scores, areas, 0.9, COCO17.sigmas).tolist() == [1, 2]
    # Distances and the root of the area grow alike: nothing changes.
    poses[..., :2] *= 7
    assert ops.oks_nms(poses, scores, areas * 49, 0.9, COCO17.sigmas).tolist() == [1, 2]


def test_head_of_the_finest_map():
    head = HeatmapHead(8, 5)
    assert head.conv.weight.std() < 0.002
    assert (head.conv.bias == 0).all()
    maps = [torch.rand(2, 8, 6, 4), torch.rand(2, 16, 3, 2)]
    expected = torch.einsum("bchw,kc->bkhw", maps[0], head.conv.weight[:, :, 0, 0])
    torch.testing.assert_close(head(maps), expected)


def test_trunks_of_other_networks():
    model = model_of()
    model.trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    other = {name: torch.rand_like(value.float()) for name, value in model.trunk.state_dict().items()}
    other.pop("1.num_batches_tracked")  # as files of old PyTorch versions
    unused = model.load_trunk({**other, "0.more.weight": torch.zeros(1), "fc.weight": torch.zeros(2)})
    assert unused == ["0.more.weight"]
    assert torch.equal(model.trunk[0].weight, other["0.weight"])
    assert torch.equal(model.trunk[1].running_var, other["1.running_var"])
    with pytest.raises(InputError, match=r"a file do not fit Sequential: 1\.weight is missing \(and 2 more"):
        model.load_trunk({name: other[name] for name in ("0.weight", "0.bias", "1.running_mean")}, "a file")
    with pytest.raises(InputError, match=r"weights do not fit Sequential: 0\.bias is \[3\], not \[4\]"):
        model.load_trunk({**other, "0.bias": torch.zeros(3)})


def test_wrong_options():
    for size in ((250, 192), (256,), (0, 0), (16, 16)):
        with pytest.raises(InputError, match=r"input_size must be \(height, width\), multiples of 32, got \("):
            model_of(input_size=size)
    for size in (64, "ab", None, (64.5, 64)):
        with pytest.raises(InputError, match=r"input_size must be \(height, width\), multiples of 32, got "):
            model_of(input_size=size)
    assert model_of(input_size=[64, 32]).input_size == (64, 32)
    for count in (0, 18):
        with pytest.raises(InputError, match=rf"hard_joints must be None or in 1\.\.17, got {count}"):
            model_of(hard_joints=count)
    with pytest.raises(InputError, match="decoding must be 'none', 'quarter' or 'dark', got 'soft'"):
        model_of(decoding="soft")
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="sigma must be a positive number, got "):
            model_of(sigma=value)
        with pytest.raises(InputError, match="margin must be a positive number, got "):
            model_of(margin=value)


def test_wrong_images():
    model = model_of()
    for images in (torch.zeros(3, 64, 64), torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"images must be normalised crops, floating point \[B, 3, H, W\], got "):
            model(images)
    for size in ((64, 50), (0, 64)):
        with pytest.raises(InputError, match=r"images must have sides that are multiples of 32, got \[1, 3, "):
            model(torch.zeros(1, 3, *size))
    with pytest.raises(InputError, match="images must hold at least one crop, got none"):
        model([])
    with pytest.raises(InputError, match=r"images must all have one size, got \[3, 32, 32\], \[3, 64, 32\]"):
        model([torch.zeros(3, 32, 32), torch.zeros(3, 64, 32)])
    with pytest.raises(InputError, match="images must hold at least one crop in training, got none"):
        model.train()(torch.zeros(0, 3, 64, 64), [])


def test_wrong_targets():
    model = model_of().train()
    images = torch.zeros(2, 3, 64, 64)
    good = {"keypoints": torch.zeros(17, 3)}
    with pytest.raises(InputError, match="targets must hold one dict for each of the 2 crops in training, got none"):
        model(images)
    with pytest.raises(InputError, match="targets must hold one dict for each of the 2 crops in training, got 1"):
        model(images, [good])
    with pytest.raises(InputError, match="target 1 must hold 'keypoints', got weights"):
        model(images, [good, {"weights": torch.zeros(17)}])
    with pytest.raises(InputError, match="target 0 must hold 'keypoints', got nothing"):
        model(images, [{}, good])
    with pytest.raises(InputError, match=r"target 1: keypoints must be \[17, 3\], got \[16, 3\]"):
        model(images, [good, {"keypoints": torch.zeros(16, 3)}])
    with pytest.raises(InputError, match=r"target 0: weights must be \[17\], got \[17, 1\]"):
        model(images, [{**good, "weights": torch.zeros(17, 1)}, good])
    for value in (math.nan, math.inf):
        keypoints = torch.full((17, 3), 2.0)
        keypoints[3, 1] = value
        with pytest.raises(InputError, match="target 1: labelled keypoints must be finite, but some are not"):
            model(images, [good, {"keypoints": keypoints}])
        with pytest.raises(InputError, match="target 1: weights must be finite, but some are not"):
            model(images, [good, {**good, "weights": torch.full((17,), value)}])
        # Where nothing is labelled, nothing is looked at.
        keypoints[3, 2] = 0
        loss = model(images, [{"keypoints": keypoints}, good])["loss_heatmap"]
        keypoints[3, 1] = 5
        assert torch.equal(loss, model(images, [{"keypoints": keypoints}, good])["loss_heatmap"])


def test_joints_without_a_number_have_no_part_in_the_persons_score():
    joints = torch.tensor([[0.9, -math.inf, math.nan, 0.1], [-math.inf, math.nan, 0.1, 0.0]])
    assert model_of().person_scores(torch.tensor([0.5, 0.5]), joints).tolist() == pytest.approx([0.45, 0])
