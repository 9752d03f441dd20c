"""The tools behind the corruptions against slow loops, and what is random with the same draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from toughen.corruptions import corrupt
from toughen.corruptions.blur import walk
from toughen.corruptions.filters import along_line, clipped_zoom, sample
from toughen.corruptions.spatter import FAR, edge_distance, edges, equalised
from toughen.corruptions.weather import enlarged, ice_on_glass
from toughen.noise import derive


def generator(name: str, severity: int, seed: int = 0, number: int = 0) -> np.random.Generator:
    return np.random.default_rng(derive("corruption", seed, name, severity, number))


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 14), st.integers(3, 14), st.integers(1, 4), st.integers(0, 10**6))
def test_the_walk_equals_the_loop(height, width, reach, seed):
    inner = (max(height - 2 * reach, 0), max(width - 2 * reach, 0))
    moves = np.random.default_rng(seed).integers(-reach, reach, (2, *inner), np.int8)
    image = np.arange(height * width).reshape(height, width)
    for h in range(height - reach, reach, -1):
        for w in range(width - reach, reach, -1):
            dy, dx = moves[:, h - reach - 1, w - reach - 1]
            image[h, w] = image[h + dy, w + dx]
    np.testing.assert_array_equal(walk(height, width, reach, moves), image.reshape(-1))


@pytest.mark.parametrize("angle", [-135, -100, -45, -12.5, 0, 30.1, 45])
@pytest.mark.parametrize("size", [(20, 30), (60, 50)])
def test_a_line_is_a_weighted_sum_of_shifted_images(size, angle):
    image = np.random.default_rng(0).random(size)
    radius, sigma = 15, 8
    taps = 2 * radius + 1
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(taps)]
    rows, columns = np.mgrid[: size[0], : size[1]]
    slow = np.zeros(size)
    for i, weight in enumerate(weights):
        down = -math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        right = -math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        if abs(down) >= size[0] or abs(right) >= size[1]:
            break
        y, x = np.clip(rows - down, 0, size[0] - 1), np.clip(columns - right, 0, size[1] - 1)
        slow += weight / sum(weights) * image[y, x]
    np.testing.assert_allclose(along_line(image, radius, sigma, angle), slow, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(1, 4.6))
def test_zoom_equals_scipys(height, width, factor):
    image = np.random.default_rng(0).random((height, width))
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    slow = np.asarray(ndimage.zoom(image[top : top + rows, left : left + columns], factor, order=1))
    assert slow.ndim == 2
    np.testing.assert_allclose(clipped_zoom(image, factor, "corner"), slow, atol=1e-12)
    top, left = (slow.shape[0] - height) // 2, (slow.shape[1] - width) // 2
    cut = slow[top : top + height, left : left + width]
    np.testing.assert_allclose(clipped_zoom(image, factor, "centre"), cut, atol=1e-12)


def test_look_up_between_pixels_equals_scipys():
    rng = np.random.default_rng(0)
    image = rng.random((2, 12, 17))
    y, x = rng.uniform(-20, 30, (2, 9, 11))
    for mirror, mode in (("symmetric", "reflect"), ("reflect", "mirror")):
        slow = [ndimage.map_coordinates(plane, (y, x), order=1, mode=mode) for plane in image]
        np.testing.assert_allclose(sample(image, y, x, mirror), slow, atol=1e-12)


def test_glass_with_the_same_draws_equals_the_loop():
    image = np.random.default_rng(5).integers(0, 256, (24, 26, 3), dtype=np.uint8)
    rng = generator("glass_blur", 3)
    slow = (ndimage.gaussian_filter(image / 255.0, (1, 1, 0), mode="nearest") * 255).astype(np.uint8)
    for _ in range(3):
        moves = rng.integers(-2, 2, (2, 20, 22), np.int8)
        for h in range(24 - 2, 2, -1):
            for w in range(26 - 2, 2, -1):
                dy, dx = moves[:, h - 3, w - 3]
                slow[h, w] = slow[h + dy, w + dx]
    slow = ndimage.gaussian_filter(slow / 255.0, (1, 1, 0), mode="nearest")
    ours = corrupt(torch.from_numpy(image).permute(2, 0, 1)[None], "glass_blur", 3, constants="imagenet")
    np.testing.assert_array_equal(ours[0].permute(1, 2, 0), (np.clip(slow, 0, 1) * 255).astype(np.uint8))


def test_frost_is_a_part_of_a_photograph():
    ours = corrupt(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "frost", 4, constants="cifar")[0].numpy()
    rng = generator("frost", 4)
    number = int(rng.integers(5))
    photograph = ice_on_glass(number, 5, 32, 32)
    top, left = (int(rng.integers(n - 32)) for n in photograph.shape[1:])
    crop = photograph[:, top : top + 32, left : left + 32]
    np.testing.assert_array_equal(ours, (crop * np.float32(0.4)).astype(np.uint8))


def test_the_photographs_have_their_sizes():
    sizes = [(900, 600), (560, 315), (560, 315), (527, 350), (660, 495), (485, 323)]
    for number, (width, height) in enumerate(sizes):
        assert ice_on_glass(number, 1, 32, 32).shape == (3, math.ceil(height * 1.1), math.ceil(width * 1.1))
        assert ice_on_glass(number, 5, 32, 32).shape == (3, round(height / 5), round(width / 5))
    # An image that is larger than the photograph: the photograph grows until a part of it can be chosen.
    assert ice_on_glass(5, 1, 400, 500).shape == (
        3,
        math.ceil(323 * (1.1 * (400 / 323))),
        math.ceil(485 * 1.1 * 400 / 323),
    )
    assert ice_on_glass(5, 5, 100, 64).shape == (3, math.ceil(65 * (1.1 * (100 / 65))), math.ceil(97 * 1.1 * 100 / 65))


def test_enlarging_is_cubic_interpolation():
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 11), dtype=np.uint8)

    def weight(distance: float) -> float:
        d, a = abs(distance), -0.75
        inner, outer = ((a + 2) * d - (a + 3)) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a
        return inner if d <= 1 else outer if d < 2 else 0.0

    out = enlarged(image, 10, 13)[0]
    for i, j in itertools.product(range(10), range(13)):
        y, x = (i + 0.5) * 0.9 - 0.5, (j + 0.5) * 11 / 13 - 0.5
        exact = sum(
            weight(y - r) * weight(x - c) * float(image[0, np.clip(r, 0, 8), np.clip(c, 0, 10)])
            for r in range(math.floor(y) - 1, math.floor(y) + 3)
            for c in range(math.floor(x) - 1, math.floor(x) + 3)
        )
        assert abs(out[i, j] - np.clip(exact, 0, 255)) < 0.8


def test_distance_to_edges_is_the_shortest_chamfer_path():
    rng = np.random.default_rng(2)
    costs = {1: 1.0, 2: 1.4, 5: 2.1969}
    square = itertools.product((-2, -1, 0, 1, 2), repeat=2)
    steps = [(y, x, costs[y * y + x * x]) for y, x in square if y * y + x * x in costs]
    for share in (0.002, 0.02, 0.3):
        edge = rng.random((1, 24, 30)) < share
        edge[0, 3, 4] = True
        slow = np.where(np.pad(edge[0], 2), 0.0, np.inf)
        for _ in range(40):
            slow[2:-2, 2:-2] = np.minimum.reduce(
                [slow[2:-2, 2:-2]] + [slow[2 + y : 26 + y, 2 + x : 32 + x] + cost for y, x, cost in steps]
            )
        ours = np.minimum(edge_distance(edge)[0], FAR)
        np.testing.assert_allclose(ours, np.minimum(slow[2:-2, 2:-2], FAR), atol=1e-3)
    assert (edge_distance(np.zeros((1, 5, 6), bool)) >= FAR).all()


def test_edges_of_a_square_lie_on_its_border():
    levels = np.zeros((2, 20, 20), np.uint8)
    levels[0, 6:14, 5:15] = 200
    found = edges(levels, 50, 150)
    assert not found[1].any()
    square = levels[0] > 0
    border = np.asarray(ndimage.binary_dilation(square)) & ~np.asarray(ndimage.binary_erosion(square), bool)
    assert found[0].any(axis=0)[5:15].all()
    assert not (found[0] & ~border).any()
    # A step too weak by itself, and the same one joined to a strong edge.
    levels[0], levels[0, :, 10:] = 0, 20
    assert not edges(levels, 50, 150)[0].any()
    levels[0, 10:, 10:] = 90
    assert np.all(edges(levels, 50, 150)[0, 2:18, 9:11].any(axis=1))


def test_equalised_spreads_the_levels():
    plane = np.array([[[3, 3, 7, 9]], [[5, 5, 5, 5]]], np.uint8)
    np.testing.assert_array_equal(equalised(plane), [[[0, 0, 128, 255]], [[5, 5, 5, 5]]])


def test_affine_maps_keep_straight_lines():
    ramp = np.broadcast_to(np.arange(40, 200, 5, dtype=np.uint8), (32, 32))
    out = corrupt(torch.from_numpy(ramp.copy())[None, None], "elastic_transform", 1, constants="cifar")[0, 0].numpy()
    middle = out[10:22, 10:22].astype(float)
    y, x = np.mgrid[:12, :12]
    plane = np.column_stack([y.ravel(), x.ravel(), np.ones(144)])
    fit = plane @ np.linalg.lstsq(plane, middle.ravel(), rcond=None)[0]
    assert np.abs(fit - middle.ravel()).max() < 1.1
    assert np.abs(middle - ramp[10:22, 10:22]).max() > 2
    flat = torch.tensor([9, 120, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for severity in (1, 2, 3, 4, 5):
        gap = corrupt(flat, "elastic_transform", severity, constants="cifar").int() - flat.int()
        assert int(gap.abs().max()) <= 1
