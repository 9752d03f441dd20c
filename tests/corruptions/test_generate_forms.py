"""Corruptions against their definitions, computed by hand or slowly."""

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from toughen.corruptions import corrupt
from toughen.corruptions.constants import CIFAR, IMAGENET, SETS
from toughen.corruptions.noise import poisson_tables


def noise_image(height: int = 33, width: int = 40, seed: int = 0) -> np.ndarray:
    """(H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def flat(level: int, size: int = 64) -> torch.Tensor:
    return torch.full((4, 3, size, size), level, dtype=torch.uint8)


def corrupted(image: np.ndarray, name: str, severity: int, **options) -> np.ndarray:
    """Of one (H, W, 3)."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    return corrupt(batch, name, severity, **options)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("gaussian_noise", lambda c, v: 255 * c),
        ("shot_noise", lambda c, v: 255 * np.sqrt(v / 255 / c)),
        ("speckle_noise", lambda c, v: v * c),
    ],
)
def test_noise_has_the_moments_of_its_definition(name, deviation, severity):
    # 100 is far enough from black and white for nothing to be clipped under CIFAR's constants.
    out = corrupt(flat(100), name, severity, constants="cifar").double()
    expected = deviation(CIFAR[name][severity - 1], 100)
    n = out.numel()
    # Truncation takes half a level on average; it moves the deviation by a part of one.
    assert abs(out.mean() - 99.5) < 5 * expected / n**0.5
    assert abs(out.std() - expected) < 5 * expected / (2 * n) ** 0.5 + 0.3


@pytest.mark.parametrize("constants", SETS)
def test_impulses_are_half_black_and_half_white(constants):
    for severity, share in enumerate(SETS[constants]["impulse_noise"], start=1):
        out = corrupt(flat(100), "impulse_noise", severity, constants=constants)
        for level in (0, 255):
            count = int((out == level).sum())
            assert stats.binomtest(count, out.numel(), share / 2).pvalue > 1e-4
        assert set(out.unique().tolist()) == {0, 100, 255}


@pytest.mark.parametrize("photons", sorted({*CIFAR["shot_noise"], *IMAGENET["shot_noise"]} - {500}))
def test_the_alias_tables_hold_the_poisson_distribution(photons):
    threshold, low, high = poisson_tables(photons)
    columns = len(low)
    counts = np.arange(photons + 1)
    for level in (0, 1, 77, 254, 255):
        share = threshold[level] / (2**32 // columns)
        ours, theirs = np.zeros(256), np.zeros(256)
        np.add.at(ours, low, share / columns)
        np.add.at(ours, high[level], (1 - share) / columns)
        chance = stats.poisson.pmf(counts, level / 255 * photons)
        chance[-1] = stats.poisson.sf(photons - 1, level / 255 * photons)
        np.add.at(theirs, (counts / photons * 255).astype(int), chance)
        np.testing.assert_allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("constants", SETS)
def test_brightness_and_saturation_are_those_of_colorsys(constants, severity):
    image = noise_image(12, 13)
    image[:2] = image[:2, :, :1]
    image[2, :, 0] = image[2, :, 1]
    added = SETS[constants]["brightness"][severity - 1]
    factor, shift = SETS[constants]["saturate"][severity - 1]
    for name, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + added, 1))),
        ("saturate", lambda h, s, v: (h, min(s * factor + shift, 1), v)),
    ):
        slow = [[colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(pixel / 255)))) for pixel in row] for row in image]
        out = corrupted(image, name, severity, constants=constants)
        # A value that is a grey level up to rounding may be truncated to the one below.
        assert (np.abs(out - (np.array(slow) * 255 - 0.5)) < 0.5 + 1e-9).all()


@pytest.mark.parametrize("constants", SETS)
def test_contrast_shrinks_the_distance_from_each_channels_mean(constants):
    image = noise_image()
    for severity, factor in enumerate(SETS[constants]["contrast"], start=1):
        means = image.reshape(-1, 3).mean(axis=0)
        exact = np.clip((image - means) * factor + means, 0, 255)
        out = corrupted(image, "contrast", severity, constants=constants)
        assert (np.abs(out - (exact - 0.5)) < 0.5 + 1e-9).all()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("constants", SETS)
def test_jpeg_is_pillows(constants, severity):
    image, file = noise_image(), BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=SETS[constants]["jpeg_compression"][severity - 1])
    np.testing.assert_array_equal(
        corrupted(image, "jpeg_compression", severity, constants=constants), np.asarray(Image.open(file))
    )


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("constants", SETS)
def test_pixels_are_pillows(constants, severity):
    image = noise_image()
    share = SETS[constants]["pixelate"][severity - 1][0]
    back = Image.Resampling.BOX if constants == "cifar" else Image.Resampling.NEAREST
    small = Image.fromarray(image).resize((int(40 * share), int(33 * share)), Image.Resampling.BOX)
    np.testing.assert_array_equal(
        corrupted(image, "pixelate", severity, constants=constants), np.asarray(small.resize((40, 33), back))
    )


def test_the_smallest_defocus_is_the_mean_over_a_disk():
    image = noise_image()
    padded = np.pad(image.astype(float), ((3, 3), (3, 3), (0, 0)), mode="reflect")
    places = [(y, x) for y in range(-3, 4) for x in range(-3, 4) if y * y + x * x <= 9]
    assert len(places) == 29
    exact = sum(padded[3 + y : 36 + y, 3 + x : 43 + x] for y, x in places) / 29
    out = corrupted(image, "defocus_blur", 1, constants="imagenet")
    assert (np.abs(out - (exact - 0.5)) < 0.5 + 1e-4).all()


def test_gaussian_blur_spreads_a_point_as_a_gaussian():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    y, x = np.mgrid[-20:21, -20:21]
    for severity, sigma in enumerate(IMAGENET["gaussian_blur"][:2], start=1):
        exact = 255 * np.exp(-(y**2 + x**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
        out = corrupted(image, "gaussian_blur", severity, constants="imagenet")
        assert np.abs(out - exact[..., None]).max() < 1.1


@pytest.mark.parametrize("constants", SETS)
def test_fog_turns_white_to_the_whole_range_of_the_fractal_and_leaves_black(constants):
    for severity, (thickness, _) in enumerate(SETS[constants]["fog"], start=1):
        out = corrupt(flat(255), "fog", severity, constants=constants)
        assert (out.amax(dim=(1, 2, 3)) >= 254).all()
        assert (abs(out.amin(dim=(1, 2, 3)).int() - int(255 / (1 + thickness))) <= 1).all()
        assert not corrupt(flat(0), "fog", severity, constants=constants).any()


@pytest.mark.parametrize("constants", SETS)
def test_snow_is_a_layer_and_its_half_turn_on_a_whitened_image(constants):
    for severity, row in enumerate(SETS[constants]["snow"], start=1):
        out = corrupt(flat(0), "snow", severity, constants=constants)
        assert torch.equal(out, out.flip(2, 3))
        assert torch.equal(out[:, 0], out[:, 2])
        # Black is whitened to half of what the image leaves.
        assert int(out.min()) >= int(255 * (1 - row[6]) / 2 - 1e-3)
        assert out.float().std() > 1


def test_water_has_one_colour_and_mud_covers():
    water = corrupt(flat(0), "spatter", 1, constants="cifar").int()
    assert water.any()
    assert torch.equal(water[:, 1], water[:, 2])
    assert (abs(water[:, 0] - water[:, 1] * 175 / 238) <= 1).all()
    # The brightest drop has the strength that the constants say.
    assert int(water.amax()) == int(238 * 0.5)
    mud = corrupt(flat(255), "spatter", 5, constants="cifar")
    covered = (mud != 255).any(dim=1)
    assert 0 < covered.float().mean() < 1
    for channel, colour in enumerate((63, 42, 20)):
        assert int(mud[:, channel][covered].max()) <= 0.2 * 255 + 0.8 * colour + 1
        assert int(mud[:, channel][covered].min()) >= colour - 1


def test_no_drop_leaves_the_image():
    rows = corrupt(torch.full((64, 3, 8, 8), 90, dtype=torch.uint8), "spatter", 1, constants="imagenet")
    dry = (rows == 90).all(dim=1).all(dim=1).all(dim=1)
    assert dry.any()
    assert not dry.all()
    assert not (rows == 0).any()
