"""Whose result it is, and the refusal of another identity."""

import json
from pathlib import Path

import pytest
import torch

import toughen
from toughen.models.identity import claim, identity_of, refuse_other, threat_in_full
from toughen.threat import L2, Linf


def test_a_ball_in_full_tells_radii_apart_by_value():
    assert threat_in_full(Linf(0.1)) == "linf:0.1"
    one, other = torch.tensor([0.1, 0.2]), torch.tensor([0.1, 0.3])
    assert threat_in_full(L2(one)) == threat_in_full(L2(one.clone()))
    assert threat_in_full(L2(one)) != threat_in_full(L2(other))


def test_an_identity_is_as_json_gives_it_back():
    found = identity_of(settings=[("pgd", {"steps": 2})], seed=0)
    assert found == {"version": toughen.__version__, "settings": [["pgd", {"steps": 2}]], "seed": 0}


IDENTITY = {"model": "0123456789abcdef", "seed": 0, "settings": [1], "version": "1"}
WHERE = Path("there")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"model": "fedcba9876543210"}, "another model (or other weights of it) (fedcba98..., given 01234567...)"),
        ({"model": None}, "another model (or other weights of it)"),
        ({"seed": 1}, "another seed (1, given 0)"),
        ({"settings": [2]}, "other attacks, corruptions or settings"),
        ({"version": "0"}, "another version of toughen (0, given 1)"),
    ],
)
def test_what_differs_is_named_in_figures_where_they_are_short(found, says):
    with pytest.raises(ValueError, match="EV271") as caught:
        refuse_other(WHERE, {**IDENTITY, **found}, IDENTITY)
    assert str(caught.value) == f"EV271 there holds an evaluation of {says}; give another folder, or delete it"


def test_the_words_of_another_kind_of_result():
    with pytest.raises(ValueError, match="EV271") as caught:
        refuse_other(WHERE, {**IDENTITY, "seed": 2}, IDENTITY, of="toys", remedy="go away", seed="another draw")
    assert str(caught.value) == "EV271 there holds toys of another draw (2, given 0); go away"


def test_the_same_identity_is_let_in_and_a_file_of_something_else_is_not():
    refuse_other(WHERE, {**IDENTITY, "more": 1}, IDENTITY)
    with pytest.raises(ValueError, match="another model"):
        refuse_other(WHERE, ["no identity"], IDENTITY)


def test_a_folder_is_claimed_once(tmp_path: Path):
    path = tmp_path / "identity.json"
    claim(tmp_path, path, IDENTITY)
    before = path.read_bytes()
    assert json.loads(before) == IDENTITY
    claim(tmp_path, path, IDENTITY)
    with pytest.raises(ValueError, match=r"EV271 .* holds an evaluation of another seed"):
        claim(tmp_path, path, {**IDENTITY, "seed": 1})
    assert path.read_bytes() == before
