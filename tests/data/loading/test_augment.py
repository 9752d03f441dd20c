import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toughen.data import augment, flip, pad_and_crop
from toughen.noise import Stream

DTYPES = [torch.uint8, torch.float32, torch.int64]


def images(n: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.uint8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator).to(dtype)


def slow_crop(x: torch.Tensor, offsets: torch.Tensor, pad: int, mode: str) -> np.ndarray:
    height, width = x.shape[2:]
    out = np.empty_like(x.numpy())
    for n, (top, left) in enumerate(offsets.tolist()):
        for c in range(x.shape[1]):
            padded = np.pad(x[n, c].numpy(), pad, mode="reflect" if mode == "reflect" else "constant")
            out[n, c] = padded[top : top + height, left : left + width]
    return out


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pad_and_crop_equals_the_slow_loop(data):
    n, c, h, w = (data.draw(st.integers(low, high)) for low, high in ((0, 4), (1, 3), (2, 7), (2, 7)))
    mode = data.draw(st.sampled_from(["constant", "reflect"]))
    pad = data.draw(st.integers(0, min(h, w) - 1 if mode == "reflect" else 9))
    x = images(n, (c, h, w), data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 99)))
    offset = st.integers(0, 2 * pad)
    offsets = torch.tensor([[data.draw(offset), data.draw(offset)] for _ in range(n)], dtype=torch.int64).view(n, 2)
    out = pad_and_crop(x, offsets, pad, mode)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out.numpy(), slow_crop(x, offsets, pad, mode))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_the_middle_offset_is_the_identity(mode):
    x = images(3, (3, 8, 6))
    assert torch.equal(pad_and_crop(x, torch.full((3, 2), 4), 4, mode), x)


def test_flip():
    x = images(4, (3, 5, 6))
    mask = torch.tensor([True, False, True, False])
    out = flip(x, mask)
    for n in range(4):
        np.testing.assert_array_equal(out[n].numpy(), x[n].numpy()[:, :, ::-1] if mask[n] else x[n].numpy())
    assert torch.equal(flip(out, mask), x)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_augment_is_what_its_draws_say(mode):
    x, noise = images(16, (3, 8, 8)), Stream((0, "augment", 5), torch.arange(16), 16)
    offsets, mask = noise.child("crop").integers(5, (2,)), noise.child("flip").integers(2)
    expected = slow_crop(x, offsets, 2, mode)
    for n in range(16):
        expected[n] = expected[n, :, :, ::-1] if mask[n] else expected[n]
    np.testing.assert_array_equal(augment(x, noise, pad=2, flip=True, mode=mode).numpy(), expected)
    assert torch.equal(augment(x, noise), x)
    assert offsets.unique().tolist() == [0, 1, 2, 3, 4]
    assert mask.unique().tolist() == [0, 1]


def test_an_image_does_not_depend_on_its_company():
    x, noise = images(16, (3, 8, 8)), Stream((0, "augment", 5), torch.arange(16), 16)
    whole = augment(x, noise, pad=2, flip=True)
    chosen = torch.tensor([3, 9, 14])
    assert torch.equal(augment(x[chosen], noise[chosen], pad=2, flip=True), whole[chosen])


def test_refusals(one_sentence):
    x, offsets = images(2, (1, 4, 5)), torch.zeros(2, 2, dtype=torch.int64)
    assert "constant, reflect" in one_sentence(pad_and_crop, x, offsets, 1, "edge")
    assert "0 or more" in one_sentence(pad_and_crop, x, offsets, -1)
    assert "at most 3" in one_sentence(pad_and_crop, x, offsets, 4, "reflect")
    assert "(2, 2)" in one_sentence(pad_and_crop, x, offsets[:1], 1)
    noise = Stream(("x",), torch.arange(2), 2)
    assert "0 or more" in one_sentence(augment, x, noise, pad=-1)
