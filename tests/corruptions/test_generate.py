import numpy as np
import pytest
import torch

from toughen.corruptions import CORRUPTIONS, EXTRA, MAIN, REGISTRY, corrupt

SETS = ("cifar", "imagenet")


def photographs(n: int, channels: int = 3, size: int = 32) -> torch.Tensor:
    """Smooth images with edges, each different."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size
    waves = np.stack(
        [
            [np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform(0, 6)) for _ in range(channels)]
            for _ in range(n)
        ]
    )
    waves[:, :, size // 3 : size // 2, size // 4 : size // 2] *= -0.7
    return torch.from_numpy((waves * 100 + 128).astype(np.uint8))


def test_the_names_are_those_of_the_paper_in_its_order():
    text = """gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog
    brightness contrast elastic_transform pixelate jpeg_compression"""
    assert tuple(text.split()) == MAIN
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert MAIN + EXTRA == CORRUPTIONS == tuple(REGISTRY)


@pytest.mark.parametrize("constants", SETS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_alone_in_a_batch_and_in_any_order(name, constants):
    images = photographs(5)
    for severity in (1, 4):
        whole = corrupt(images, name, severity, constants=constants, seed=3)
        assert whole.dtype == torch.uint8
        assert whole.shape == images.shape
        assert not torch.equal(whole, images)
        single = [corrupt(images[i : i + 1], name, severity, constants=constants, seed=3, ids=[i]) for i in range(5)]
        assert torch.equal(torch.cat(single), whole)
        order = torch.tensor([4, 0, 2])
        assert torch.equal(corrupt(images[order], name, severity, constants=constants, seed=3, ids=order), whole[order])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_blocks_do_not_show(name, monkeypatch):
    images = photographs(7, size=16)
    whole = corrupt(images, name, 4)
    monkeypatch.setattr("toughen.corruptions.BLOCK", 3 * 3 * 16 * 16)
    assert torch.equal(corrupt(images, name, 4), whole)


RANDOM = set(CORRUPTIONS) - {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_differ_by_seed_and_example_where_there_are_any(name):
    images = photographs(1).repeat(2, 1, 1, 1)
    first = corrupt(images, name, 4)
    assert torch.equal(first[0], first[1]) == (name not in RANDOM)
    assert torch.equal(first, corrupt(images, name, 4, seed=1)) == (name not in RANDOM)
    assert torch.equal(first, corrupt(images, name, 4))


# The constants themselves are not ordered by this distance here: glass trades blur for shuffling, frost dims the image
# as it covers it, mud follows water, colours fade and then glow, and CIFAR's elastic maps shrink as its fields grow.
UNORDERED = {
    *((name, constants) for name in ("glass_blur", "pixelate", "saturate", "spatter", "frost") for constants in SETS),
    ("elastic_transform", "cifar"),
    ("zoom_blur", "cifar"),
    ("snow", "imagenet"),
}


@pytest.mark.parametrize("constants", SETS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_move_away_with_severity(name, constants):
    images = photographs(64)
    gaps = [(corrupt(images, name, s, constants=constants).float() - images).abs().mean() for s in (1, 2, 3, 4, 5)]
    assert gaps[0] > 0
    if (name, constants) not in UNORDERED:
        assert gaps == sorted(gaps), gaps
    elif name not in ("saturate", "elastic_transform"):
        assert gaps[4] > 1.1 * gaps[0], gaps


@pytest.mark.parametrize("constants", SETS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_images_stay_grey(name, constants):
    images = photographs(3, channels=1, size=28)
    for severity in (1, 5):
        out = corrupt(images, name, severity, constants=constants)
        assert out.shape == images.shape
        assert name == "saturate" or not torch.equal(out, images)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "zoom_blur", "brightness", "contrast", "pixelate"])
def test_a_grey_image_is_treated_as_three_equal_channels(name):
    images = photographs(3, channels=1)
    for severity in (1, 5):
        three = corrupt(images.repeat(1, 3, 1, 1), name, severity)
        assert torch.equal(three, corrupt(images, name, severity).repeat(1, 3, 1, 1))


def test_the_size_chooses_the_constants():
    for size, constants in ((64, "cifar"), (65, "imagenet")):
        images = photographs(1, size=size)
        chosen = corrupt(images, "contrast", 3)
        assert torch.equal(chosen, corrupt(images, "contrast", 3, constants=constants))
    assert not torch.equal(chosen, corrupt(images, "contrast", 3, constants="cifar"))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_need_not_be_square_and_may_be_small_none_or_out_of_order_in_memory(name):
    wide = photographs(2, size=40)[:, :, :17]
    for constants in SETS:
        assert corrupt(wide, name, 3, constants=constants).shape == wide.shape
        assert corrupt(wide[:, :, :8, :8], name, 5, constants=constants).shape == (2, 3, 8, 8)
    assert torch.equal(corrupt(wide, name, 2), corrupt(wide.clone(memory_format=torch.channels_last), name, 2))
    assert corrupt(wide[:0], name, 3).shape == (0, 3, 17, 40)


def test_images_are_left_as_they_are():
    images = photographs(2)
    before = images.clone()
    for name in CORRUPTIONS:
        corrupt(images, name, 5)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "fogg"}, "'fogg' is not a known corruption; allowed: gaussian_noise, .*did you mean 'fog'"),
        ({"severity": 0}, "severity is 0; allowed: 1, 2, 3, 4, 5"),
        ({"severity": 6}, "severity is 6; allowed: 1, 2, 3, 4, 5"),
        ({"severity": True}, "severity is True; allowed"),
        ({"constants": "tiny"}, "'tiny' is not a known set of constants; allowed: cifar, imagenet"),
        ({"images": torch.rand(1, 3, 32, 32)}, "the images to corrupt are torch.float32; give a uint8 tensor"),
        ({"images": np.zeros((1, 3, 32, 32), np.uint8)}, "the images to corrupt are ndarray; give a uint8 tensor"),
        ({"images": photographs(1)[0]}, r"have shape \(3, 32, 32\); give a uint8 tensor \(N, C, H, W\) with 1 or 3"),
        ({"images": photographs(1).repeat(1, 2, 1, 1)}, r"have shape \(1, 6, 32, 32\)"),
        ({"images": photographs(1)[:, :, :7]}, "are 7 x 32 pixels; the corruptions need 8 x 8 or more"),
        ({"ids": [1, 2]}, "1 images but 2 ids; give one id per image"),
    ],
)
def test_what_cannot_be_done_is_said(change, sentence):
    given = {"images": photographs(1), "name": "fog", "severity": 1, **change}
    with pytest.raises(ValueError, match=sentence):
        corrupt(given.pop("images"), given.pop("name"), given.pop("severity"), **given)
