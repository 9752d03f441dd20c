"""Broken images among stored ones: all of them found, none twice, and what was found whole remembered."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from layouts import encoded, known, write_folder, write_shards, write_tar
from photographs import photograph, stored_photographs
from toughen.data import ImageData, LazySplit, ResizeCrop, load
from toughen.data.image_source import ArrayImages
from toughen.data.integrity import check_stored_images

VIEW = ResizeCrop(6, resize=8)


def looked(splits) -> list[tuple[int, int]]:
    return list(check_stored_images(splits))


def pets(tmp_path: Path, endings: str = "png") -> tuple[Path, ImageData]:
    folder = write_folder(tmp_path / "pets", known((9, 12, 3), {"train": 12, "test": 6}), ending=endings)
    return folder, load(str(folder), VIEW)


def test_every_image_is_decoded_once_and_never_again(tmp_path, monkeypatch):
    _, data = pets(tmp_path)
    monkeypatch.setattr("toughen.data.integrity.BLOCK", 5)
    seen: list[str] = []
    check = LazySplit.check
    monkeypatch.setattr(LazySplit, "check", lambda self, place: seen.append(self.name(place)) or check(self, place))
    few = data.train.take(torch.tensor([0, 3, 11]))
    assert looked({"few": few}) == [(3, 3)]
    assert looked(data.splits) == [(5, 15), (9, 15), (14, 15), (15, 15)]
    assert len(seen) == len(set(seen)) == 18
    # Another view asks for no more than this one.
    again = load(str(tmp_path / "pets"), ResizeCrop(3))
    assert looked(again.splits) == looked({"train": again.train}) == []


def test_parts_of_one_collection_share_what_is_known(tmp_path):
    _, data = pets(tmp_path)
    odd = torch.arange(12) % 2 == 1
    assert looked({"train": data.train.take(odd), "validation": data.train.take(~odd)}) == [(6, 12), (12, 12)]
    assert looked({"train": data.train}) == []


def test_broken_images_stay_unknown_and_the_first_five_are_named(tmp_path, one_sentence):
    folder, _ = pets(tmp_path)
    paths = sorted((folder / "train").rglob("*.png"))[2:9]
    whole = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.write_bytes(whole[path][:-40])
    data = load(str(folder), VIEW)
    named = ", ".join(map(str, paths[:5]))
    assert one_sentence(looked, data.splits) == (
        f"DA412 7 images cannot be used ({named} and 2 more): each is a broken image (OSError); remove or replace it."
    )
    # The other eleven are known by now.
    assert next(check_stored_images(data.splits)) == (7, 7)
    for path in paths[1:]:
        path.write_bytes(whole[path])
    data = load(str(folder), VIEW)
    assert one_sentence(looked, data.splits) == f"DA412 {paths[0]} is a broken image (OSError); remove or replace it."
    paths[1].write_text("no image")
    text = one_sentence(looked, load(str(folder), VIEW).splits)
    assert text.startswith(
        f"DA412 2 images cannot be used ({paths[0]}, {paths[1]}): the first is a broken image (OSError)"
    )


@pytest.mark.parametrize("width", [20, 800])
def test_a_jpeg_that_is_cut_short_is_noticed_in_its_draft(tmp_path, width, one_sentence):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for place in range(2):
                photograph(place, width, width).save(tmp_path / "pets" / part / name / f"{place}.jpg", quality=95)
    victim = tmp_path / "pets" / "test" / "dog" / "1.jpg"
    victim.write_bytes(victim.read_bytes()[:-200])
    text = one_sentence(looked, load(str(tmp_path / "pets"), VIEW).splits)
    assert text == f"DA412 {victim} is a broken image (OSError); remove or replace it."


def test_files_that_are_known_by_size_are_looked_at_again_when_they_change(tmp_path, monkeypatch, one_sentence):
    monkeypatch.setattr("toughen.data.files.LARGE", 1)
    folder, data = pets(tmp_path)
    assert looked(data.splits)[-1] == (18, 18)
    assert looked(load(str(folder), VIEW).splits) == []
    victim = folder / "test" / "cat" / "000000.png"
    content = victim.read_bytes()
    later = victim.stat().st_mtime_ns + 10**9
    victim.write_bytes(content[:60] + bytes(len(content) - 60))
    os.utime(victim, ns=(later, later))
    changed = load(str(folder), VIEW)
    assert changed.fingerprint == data.fingerprint
    assert str(victim) in one_sentence(looked, changed.splits)


def test_shards(tmp_path, one_sentence):
    folder = write_shards(tmp_path / "pets", known((9, 12, 3), {"train": 12, "test": 6}))
    data = load(str(folder), VIEW)
    assert looked(data.splits) == [(12, 18), (18, 18)]
    assert looked(load(str(folder), VIEW).splits) == []
    image = encoded(known((9, 12, 3))["train"][0][0])
    write_tar(folder / "test-000009.tar", {"a.png": image[:-40], "a.cls": b"1", "b.png": image, "b.cls": b"0"})
    changed = load(str(folder), VIEW)
    assert f"a.png in {folder / 'test-000009.tar'}" in one_sentence(looked, changed.splits)
    assert changed.fingerprints["train"] == data.fingerprints["train"]
    assert changed.fingerprints["test"] != data.fingerprints["test"]


def test_images_as_they_are_must_be_alike(tmp_path, monkeypatch, one_sentence):
    folder, _ = pets(tmp_path)
    monkeypatch.setattr("toughen.data.decode.IN_MEMORY", 1)
    monkeypatch.setattr("toughen.data.decode._alike", lambda stored: None)
    (folder / "train" / "dog" / "000005.png").write_bytes(encoded(np.zeros((8, 12, 3), np.uint8)))
    assert looked(load(str(folder), VIEW).splits)[-1] == (18, 18)
    assert "RGB of 12x8 pixels, but the first image is RGB of 12x9" in one_sentence(looked, load(str(folder)).splits)


def test_what_nobody_can_recognise_is_not_remembered_and_pixels_are_not_looked_at(tmp_path):
    stored = stored_photographs(tmp_path / "photographs")
    assert looked({"train": stored}) == looked({"train": stored}) == [(23, 23)]
    pixels = LazySplit(ArrayImages(np.zeros((3, 8, 8, 3), np.uint8)), torch.zeros(3, dtype=torch.int64), "arrays", VIEW)
    assert looked({"train": pixels}) == []


def test_a_damaged_or_foreign_memory_is_none(tmp_path, cache_folder):
    folder, data = pets(tmp_path)
    looked(data.splits)
    (train, test) = sorted(cache_folder.glob("whole-*.npz"), key=lambda path: path.stat().st_mtime_ns)
    train.write_bytes(b"no archive")
    np.savez(test, marks=np.ones(5, bool))
    assert looked(load(str(folder), VIEW).splits) == [(12, 18), (18, 18)]
