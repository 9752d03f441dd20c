"""Whose result it is: what changes a hash and what does not, and the refusal of another identity."""

import functools
import hashlib
import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import toughen
from toughen.models.identity import (
    claim,
    hash_model,
    hash_source,
    hash_tensor,
    identity_of,
    refuse_other,
    threat_in_full,
)
from toughen.threat import L2, Linf


def test_the_hash_of_tensors_is_sha256_of_type_shape_and_bytes():
    x = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    expected = hashlib.sha256(b"torch.uint8(2, 2)" + bytes([1, 2, 3, 4])).hexdigest()
    assert hash_tensor(x) == expected
    assert hash_tensor(x.T.contiguous().T) == expected
    assert hash_tensor() == hashlib.sha256().hexdigest()
    assert hash_tensor(torch.zeros(0)) == hashlib.sha256(b"torch.float32(0,)").hexdigest()
    assert (
        len({hash_tensor(x), hash_tensor(x.T), hash_tensor(x.int()), hash_tensor(x.flatten()), hash_tensor(x, x)}) == 5
    )


def network(eps: float = 1e-5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, eps=eps), nn.LeakyReLU(0.1), nn.Flatten())


def test_the_hash_of_a_model_knows_weights_buffers_types_and_plain_attributes():
    model = network()
    before = hash_model(model)
    assert hash_model(network().train()) == hash_model(network().eval()) == before
    assert hash_model(network(eps=1e-4)) != before
    assert hash_model(model.double()) != before
    for change in (
        lambda net: net[0].bias.data.add_(1),
        lambda net: net[1].running_mean.add_(1),
        lambda net: setattr(net[2], "negative_slope", 0.2),
        lambda net: setattr(net[2], "mine", "text"),
        lambda net: net.set_submodule("2", nn.ReLU()),
    ):
        other = network()
        change(other)
        assert hash_model(other) != before


def mine() -> int:
    return 1


@functools.wraps(mine)
def wrapping() -> int:
    return 2 * mine()


class Called:
    def __call__(self) -> int:
        return 3


def test_the_hash_of_a_source_looks_through_wrappers():
    expected = hashlib.sha256(inspect.getsource(mine).encode()).hexdigest()
    assert hash_source(mine) == hash_source(functools.partial(mine)) == hash_source(wrapping) == expected
    assert hash_source(Called()) == hashlib.sha256(inspect.getsource(Called).encode()).hexdigest()
    assert hash_source(len) == ""
    assert hash_source(eval("lambda: 1")) == ""


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
    claim(path, IDENTITY, tmp_path)
    before = path.read_bytes()
    assert json.loads(before) == IDENTITY
    claim(path, IDENTITY, tmp_path)
    with pytest.raises(ValueError, match=r"EV271 .* holds an evaluation of another seed"):
        claim(path, {**IDENTITY, "seed": 1}, tmp_path)
    assert path.read_bytes() == before
