"""Published corrupted sets, as small folders in their layouts, read bit for bit and refused in a sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toughen.corruptions import CORRUPTIONS, MAIN
from toughen.corruptions.published import open_published
from toughen.evaluation.corruption import evaluate as measuring
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import mean_corruption_error

N = 6
LABELS = torch.tensor([3, 0, 1, 1, 2, 0])
# Of class folders n01, n02, n03 with files whose names say another order.
CLASSES = {"n01": ["b.JPEG", "e.JPEG"], "n02": ["c.JPEG"], "n03": ["a.JPEG", "d.JPEG"]}


def pixels(name: str, n: int = N, side: int = 8) -> np.ndarray:
    """Five severities of n images, each of its own."""
    draw = np.random.default_rng(CORRUPTIONS.index(name))
    return draw.integers(0, 256, (5 * n, side, side, 3), dtype=np.uint8)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """CIFAR-10-C of six images."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", pixels(name))
    np.save(folder / "labels.npy", np.tile(LABELS.numpy(), 5))
    return folder


@pytest.fixture(name="one_sentence")
def _one_sentence() -> Callable[..., str]:
    """Runs a call that must raise a ValueError of one sentence, and returns the sentence."""

    def check(call: Callable, *args: object) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call(*args)
        text = str(caught.value)
        assert "\n" not in text
        assert ". " not in text
        assert text.endswith(".")
        return text

    return check


def jpeg(path: Path, side: int = 16, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(str(Path(*path.parts[-4:])).encode())
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path, quality=90)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """ImageNet-C of five images in three classes, two corruptions."""
    folder = tmp_path / "ImageNet-C"
    for name in ("fog", "frost"):
        for severity in range(1, 6):
            for kind, members in CLASSES.items():
                for member in members:
                    jpeg(folder / name / str(severity) / kind / member)
    return folder


def test_arrays_are_read_by_severity_and_row(arrays: Path):
    published = open_published(arrays, LABELS)
    assert published.names == CORRUPTIONS
    rows = torch.tensor([4, 0, 5])
    for name in ("gaussian_noise", "saturate"):
        for severity in range(1, 6):
            taken = published.take(name, severity, rows)
            by_hand = [pixels(name)[(severity - 1) * N + row].transpose(2, 0, 1) for row in rows.tolist()]
            np.testing.assert_array_equal(taken.images.numpy(), np.stack(by_hand))
            assert taken.images.dtype == torch.uint8
            assert taken.labels.tolist() == [2, 3, 0]


@pytest.mark.parametrize("kind", ["uint8", "int32", "int64"])
def test_labels_may_be_of_any_whole_type_and_the_test_set_shorter(arrays: Path, kind: str):
    np.save(arrays / "labels.npy", np.tile(LABELS.numpy(), 5).astype(kind))
    assert torch.equal(open_published(arrays).labels, LABELS)
    assert torch.equal(open_published(arrays, LABELS[:4]).labels, LABELS)


def test_without_labels_those_of_the_test_set_are_taken(arrays: Path, one_sentence: Callable):
    (arrays / "labels.npy").unlink()
    published = open_published(arrays, LABELS)
    np.testing.assert_array_equal(
        published.take("fog", 2, torch.arange(N)).images.numpy(), pixels("fog")[N : 2 * N].transpose(0, 3, 1, 2)
    )
    assert published.take("fog", 2, torch.tensor([4])).labels.tolist() == [2]
    # The severities are where they are, however few labels there are.
    np.testing.assert_array_equal(
        open_published(arrays, LABELS[:2]).take("fog", 2, torch.arange(2)).images.numpy(),
        pixels("fog")[N : N + 2].transpose(0, 3, 1, 2),
    )
    assert "has no labels.npy; copy it" in one_sentence(open_published, arrays)
    longer = open_published(arrays, torch.cat([LABELS, LABELS]))
    assert "holds 6 images a severity, but there are labels for 12" in one_sentence(
        longer.take, "fog", 1, torch.arange(12)
    )


def test_another_order_than_the_test_images_is_refused(arrays: Path, one_sentence: Callable):
    labels = LABELS.clone()
    labels[4] = 1
    said = one_sentence(open_published, arrays, labels)
    assert "labels.npy says that image 4 is of class 2, but the test image 4 is of class 1" in said
    assert "has 6 images a severity, but there are 12 test images" in one_sentence(
        open_published, arrays, torch.cat([LABELS, LABELS])
    )


def test_a_subset_of_the_corruptions_is_what_is_there(arrays: Path, one_sentence: Callable):
    for name in CORRUPTIONS[15:]:
        (arrays / f"{name}.npy").unlink()
    published = open_published(arrays, LABELS)
    assert published.names == MAIN
    assert "has no spatter; it has gaussian_noise" in one_sentence(published.take, "spatter", 1, torch.arange(1))
    assert "severity is 6" in one_sentence(published.take, "fog", 6, torch.arange(1))
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        published.take("fogg", 1, torch.arange(1))


class Bait:
    """What a pickle would run."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("baited"),))


def test_damaged_arrays_are_named(arrays: Path, one_sentence: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(arrays)
    fog, rows = arrays / "fog.npy", torch.arange(2)
    whole = fog.read_bytes()

    def said() -> str:
        text = one_sentence(open_published(arrays, LABELS).take, "fog", 1, rows)
        assert str(fog) in text
        return text

    fog.write_bytes(whole[:-1])
    assert "is no whole .npy file" in said()
    fog.write_bytes(b"")
    assert "is no whole .npy file" in said()
    np.save(fog, np.array([Bait()], dtype=object), allow_pickle=True)
    assert "is no whole .npy file" in said()
    assert not Path("baited").exists()
    with open(fog, "wb") as file:
        np.savez(file, images=pixels("fog"))
    assert "is an archive" in said()
    for wrong in (pixels("fog")[:-1], pixels("fog").astype(np.float32), pixels("fog")[..., 0]):
        np.save(fog, wrong)
        assert "must be uint8 of shape (5 n, H, W, 3)" in said()
    np.save(fog, pixels("fog", n=5))
    assert "holds 5 images a severity, but there are labels for 6" in said()
    for wrong in (np.tile(LABELS.numpy(), 5)[:-1], np.tile(LABELS.numpy(), 5).astype(float), np.zeros((6, 5), int)):
        np.save(arrays / "labels.npy", wrong)
        assert "must hold whole numbers" in one_sentence(open_published, arrays)
    np.save(arrays / "labels.npy", np.arange(30))
    assert "other labels at one severity than at another" in one_sentence(open_published, arrays)


def test_files_are_read_as_they_are(files: Path):
    published = open_published(files)
    assert published.names == ("frost", "fog")
    order = ["n01/b.JPEG", "n01/e.JPEG", "n02/c.JPEG", "n03/a.JPEG", "n03/d.JPEG"]
    assert published.labels.tolist() == [0, 0, 1, 2, 2]
    rows = torch.tensor([3, 0])
    for severity in range(1, 6):
        taken = published.take("fog", severity, rows)
        for image, row in zip(taken.images, rows.tolist(), strict=True):
            with Image.open(files / "fog" / str(severity) / order[row]) as by_hand:
                np.testing.assert_array_equal(image.numpy(), np.asarray(by_hand).transpose(2, 0, 1))
        assert taken.labels.tolist() == [2, 0]


def test_files_take_the_order_of_the_test_images(files: Path, one_sentence: Callable):
    """That of the class folders, or that of the file names, as the validation set is numbered."""
    assert open_published(files, torch.tensor([0, 0, 1, 2, 2])).labels.tolist() == [0, 0, 1, 2, 2]
    by_name = open_published(files, torch.tensor([2, 0, 1]))
    assert by_name.labels.tolist() == [2, 0, 1, 2, 0]
    taken = by_name.take("frost", 4, torch.tensor([0]))
    with Image.open(files / "frost" / "4" / "n03" / "a.JPEG") as first:
        np.testing.assert_array_equal(taken.images[0].numpy(), np.asarray(first).transpose(2, 0, 1))
    said = one_sentence(open_published, files, torch.tensor([0, 1, 2]))
    assert "image 1 is of class 0, but the test image 1 is of class 1" in said


def test_damaged_folders_are_named(files: Path, one_sentence: Callable, tmp_path: Path):
    row = torch.arange(5)
    broken = files / "fog" / "2" / "n02" / "c.JPEG"
    broken.write_bytes(broken.read_bytes()[:100])
    assert str(broken) in one_sentence(open_published(files).take, "fog", 2, row)
    jpeg(broken, side=12)
    assert str(broken) in one_sentence(open_published(files).take, "fog", 2, row)
    broken.unlink()
    said = one_sentence(open_published(files).take, "fog", 2, row)
    assert f"{files / 'fog' / '2'} lacks n02/c.JPEG" in said
    jpeg(files / "fog" / "3" / "n02" / "z.JPEG")
    assert "alone holds n02/z.JPEG" in one_sentence(open_published(files).take, "fog", 3, row)
    shutil.rmtree(files / "fog" / "4")
    assert "4 is no folder of class folders" in one_sentence(open_published(files).take, "fog", 4, row)
    assert "is no folder" in one_sentence(open_published, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds neither NAME.npy files" in one_sentence(open_published, tmp_path / "empty")
    (tmp_path / "empty" / "fog" / "1").mkdir(parents=True)
    assert "holds no CLASS/*.JPEG" in one_sentence(open_published, tmp_path / "empty")


class Sum(torch.nn.Module):
    """The class of an image is the sum of its pixels modulo four."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = (x * 255).round().sum((1, 2, 3)).long() % 4
        return torch.nn.functional.one_hot(total, 4).float()


def test_published_images_are_measured(arrays: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(measuring, "corrupt", None)
    clean = torch.zeros(N, 3, 8, 8, dtype=torch.uint8)
    found = corruption_accuracy(Sum(), clean, LABELS, published=arrays, batch_size=4, folder=tmp_path / "out")
    total = 0
    for name in CORRUPTIONS:
        says = pixels(name).reshape(5, N, -1).sum(2, dtype=int) % 4
        right = says == LABELS.numpy()
        total += int(right.sum())
        for severity in range(1, 6):
            assert found.accuracy(name, severity) == right[severity - 1].mean()
    assert found.mean(CORRUPTIONS) == total / (95 * N)
    assert found.clean_accuracy == 2 / 6
    assert (found.origin, found.constants) == ("published", None)
    error = mean_corruption_error(found, found)
    assert error.value == pytest.approx(100)
    # The folder is that of these images alone.
    np.save(arrays / "fog.npy", pixels("snow"))
    with pytest.raises(ValueError, match="EV271"):
        corruption_accuracy(Sum(), clean, LABELS, published=arrays, folder=tmp_path / "out")
    others = corruption_accuracy(Sum(), clean, LABELS, published=arrays)
    with pytest.raises(ValueError, match="was measured on other images, or others corrupted"):
        mean_corruption_error(found, others)


def test_what_does_not_go_with_published_images_is_named(arrays: Path):
    clean = torch.zeros(N, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="published images are as they are"):
        corruption_accuracy(Sum(), clean, LABELS, published=arrays, constants="cifar")
    with pytest.raises(ValueError, match=r"are \(3, 8, 8\) \(C, H, W\), but the test images are \(3, 9, 9\)"):
        corruption_accuracy(Sum(), torch.zeros(N, 3, 9, 9, dtype=torch.uint8), LABELS, published=arrays)
    np.save(arrays / "fog.npy", pixels("fog", side=10))
    with pytest.raises(ValueError, match=r"images of fog in .* are \(3, 10, 10\)"):
        corruption_accuracy(Sum(), clean, LABELS, published=arrays)
    (arrays / "spatter.npy").unlink()
    with pytest.raises(ValueError, match="has no spatter; give corruptions of gaussian_noise"):
        corruption_accuracy(Sum(), clean, LABELS, published=arrays)
