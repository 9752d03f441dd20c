import numpy as np
import pytest
import torch

from toughen.data import Split
from toughen.data.pseudo_labelling import duplicates
from toughen.data.pseudo_labelling.dct import lowest, mirrored
from toughen.data.pseudo_labelling.duplicates import Reference, near, squared_limit
from toughen.noise import generator


def random_images(name: str, n: int, shape: tuple[int, int, int], smooth: bool = False) -> torch.Tensor:
    draw = generator("duplicates", name)
    if not smooth:
        return torch.randint(0, 256, (n, *shape), generator=draw, dtype=torch.uint8)
    coarse = torch.rand((n, shape[0], 3, 3), generator=draw)
    fine = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    return (200 * fine + 55 * torch.rand((n, *shape), generator=draw)).to(torch.uint8)


def pool_of(images: torch.Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64))


def brute(pool: torch.Tensor, test: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    a, b = (x.flatten(1).numpy().astype(np.int64) for x in (pool, test))
    squared = np.stack([((row - b) ** 2).sum(1) for row in a])
    return squared.min(1), squared.argmin(1)  # argmin gives the first of equals


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 7), (1, 1, 1), (2, 5, 9)])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("dense", [0, 3, 10**6])
def test_the_nearest_are_those_of_brute_force(shape, smooth, dense, monkeypatch):
    # `dense`: every image by the float64 product, some of them, none.
    monkeypatch.setattr(duplicates, "_DENSE", dense)
    test, pool = random_images("test", 60, shape, smooth), random_images("pool", 50, shape, smooth)
    test[41] = test[7]  # a tie: the first counts
    test[:2], test[2:4] = 0, 255
    pool[3], pool[4], pool[5] = test[41], test[20], 0
    pool[6] = (test[30].int() - 1).clamp(0).to(torch.uint8)
    found = near(pool_of(pool), test, block=13)
    squared, index = brute(pool, test)
    assert found.squared.tolist() == squared.tolist()
    assert found.index.tolist() == index.tolist()
    assert found.distance.numpy() == pytest.approx(np.sqrt(squared) / 255, rel=1e-15)
    assert (found.squared[3:6] == 0).all()
    assert found.index[3] <= 7

    middle = int(np.sort(squared)[25])
    threshold = float(np.sqrt(middle) / 255)
    assert squared_limit(threshold) == middle
    assert found.within(threshold).tolist() == (squared <= middle).tolist()


def test_extreme_images_are_not_lost_to_rounding():
    # Large norms and tiny distances, where |a|^2 + |b|^2 - 2ab in float32 is off by thousands.
    test = torch.full((40, 3, 32, 32), 255, dtype=torch.uint8)
    for i in range(40):
        test[i].view(-1)[: i + 1] -= 1
    pool = test.flip(0).clone()
    pool[5].view(-1)[-1] = 254
    found = near(pool_of(pool), test)
    squared, index = brute(pool, test)
    assert found.squared.tolist() == squared.tolist()
    assert found.squared.sum() == 1
    assert found.index.tolist() == index.tolist()


def test_precision_that_the_process_asked_for_is_not_used_and_restored():
    test, pool = random_images("test", 60, (3, 32, 32), True), random_images("pool", 20, (3, 32, 32), True)
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert near(pool_of(pool), test).index.tolist() == brute(pool, test)[1].tolist()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(found)


def test_thresholds_mean_the_fraction_that_was_written():
    assert squared_limit(2000 / 255) == 4_000_000
    assert all(squared_limit(n / 255) == n * n for n in range(14134))
    assert squared_limit(1.0) == 65025
    assert squared_limit(0.5) == 16256  # 127.5^2 = 16256.25


def test_the_filter_never_exceeds_the_distance():
    reference = Reference(random_images("test", 30, (3, 12, 20), True))
    images = random_images("pool", 25, (3, 12, 20), True)
    left = reference._features(*reference._measured(images)[:2]).double()
    right = reference._right[:-2].T.double()
    squared = (images.flatten(1).long()[:, None] - reference._pixels[:, :720].long()).square().sum(2)
    filtered = (left[:, None] - right).square().sum(2)
    assert (filtered <= squared + reference._slack(left)[:, None]).all()
    # And it is no vacuous bound: most of the distance is seen.
    assert (filtered > 0.8 * squared).double().mean() > 0.9


def test_cosines_are_an_orthonormal_transform():
    images = random_images("cosines", 3, (3, 6, 9))
    spectrum = lowest(images, 32)
    x = images.double() - 127.5
    assert spectrum.square().sum((1, 2, 3)).numpy() == pytest.approx(x.square().sum((1, 2, 3)).numpy(), rel=1e-12)
    assert spectrum[:, 0, 0, 0].numpy() == pytest.approx(x.sum((1, 2, 3)).numpy() / np.sqrt(3 * 6 * 9), rel=1e-12)
    i, j = np.arange(6) + 0.5, np.arange(9) + 0.5
    wave = np.sqrt(2 / 6) * np.cos(np.pi * 2 * i / 6)[:, None] * np.sqrt(2 / 9) * np.cos(np.pi * 5 * j / 9)
    assert float(spectrum[1, 0, 2, 5]) == pytest.approx((x[1].sum(0).numpy() / np.sqrt(3) * wave).sum(), rel=1e-10)
    torch.testing.assert_close(lowest(images, 4), spectrum[:, :, :4, :4])
    torch.testing.assert_close(mirrored(spectrum), lowest(images.flip(3), 32))


def test_likeness_sees_through_mirrors_brightness_and_contrast():
    test = random_images("test", 40, (3, 32, 32), True)
    copies = [test[5], test[6].flip(2), test[7] // 2 + 40, random_images("other", 1, (3, 32, 32), True)[0]]
    copies.append(torch.full((3, 32, 32), 9, dtype=torch.uint8))
    found = Reference(test).alike(torch.stack(copies))
    assert found.index[:3].tolist() == [5, 6, 7]
    assert found.mirrored[:3].tolist() == [False, True, False]
    assert found.correlation[:2].numpy() == pytest.approx(1, abs=1e-5)
    assert found.correlation[2] > 0.99
    assert found.correlation[3] < 0.9
    assert abs(found.correlation[4]) < 1e-3  # a flat image is like nothing


def test_refusals(one_sentence):
    test = random_images("test", 4, (3, 8, 8))
    assert "must be one or more images" in one_sentence(Reference, test[:0])
    assert "must be one or more images" in one_sentence(Reference, test.float())
    pool = pool_of(random_images("pool", 4, (1, 8, 8)))
    assert "bring both to one shape" in one_sentence(near, pool, test)
    for threshold in (-1.0, float("nan"), float("inf")):
        assert "like 2000/255" in one_sentence(squared_limit, threshold)
    assert len(near(pool_of(test[:0]), test).squared) == 0
