import pytest

from toughen.data.crops import ResizeCrop
from toughen.recipes import RecipeError
from toughen.recipes.text import build, change, dump, parse_yaml

RECIPE = {
    "data": "mnist5k",
    "model": {"name": "small_cnn", "width": 2},
    "method": "natural",
    "threat": "linf:0.1",
    "batch_size": 20,
    "steps": 8,
}


def recipe(*changes: str):
    return build(change(RECIPE, changes))


def test_a_size_makes_a_view():
    assert recipe().data.view is None
    assert recipe("data.size=224").data.view == ResizeCrop(224)
    assert recipe("data.size=64", "data.resize=80", "data.crop_area=0.5").data.view == ResizeCrop(64, 80, 0.5)


def test_an_extra_set_is_its_source_or_a_section_and_survives_a_round_trip(tmp_path, monkeypatch):
    (tmp_path / "extra.npz").touch()
    monkeypatch.chdir(tmp_path)
    for text in ("data.extra=extra.npz", "data.extra.source=extra.npz"):
        found = recipe(text, "data.extra.labelled=0.5", "data.extra.limit=200")
        assert found.data.extra is not None
        # Absolute, so that the recipe works from anywhere.
        assert found.data.extra.source == str(tmp_path / "extra.npz")
        assert (found.data.extra.labelled, found.data.extra.limit) == (0.5, 200)
        assert build(parse_yaml(dump(found), "recipe")) == found
    assert recipe("data.extra=extra.npz").data.extra.labelled == 0.3  # pyright: ignore[reportOptionalMemberAccess]


def test_weights_from_a_file_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "net.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert recipe("model.weights=net.pt").model.weights == str(tmp_path / "net.pt")


def test_another_source_keeps_the_rest_of_the_section():
    found = recipe("data.size=32", "data=cifar10")
    assert (found.data.source, found.data.size) == ("cifar10", 32)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["data.limit=5", "data.per_class=2"], "give one of them"),
        (["data.resize=80"], "resize goes with a size"),
        (["data.size=80", "data.resize=64"], "at least that"),
        (["data.crop_area=0"], "crop_area"),
        (["data.workers=-1"], "workers"),
        (["data.extra.labelled=0.5"], "source"),
        (["data.extra=x", "data.extra.labelled=1"], "labelled"),
        (["data.extra=x", "data.extra.labelled=0.5", "data.repeats=4"], "batch_size is 10 and repeats is 4"),
    ],
)
def test_refusals(changes, part):
    with pytest.raises(RecipeError, match=r"^[^\n]*$") as error:
        recipe(*changes)
    assert part in str(error.value)


def test_repeats_must_divide_the_labelled_part():
    assert recipe("data.extra=x", "data.extra.labelled=0.4", "data.repeats=4").data.repeats == 4
