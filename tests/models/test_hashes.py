"""Hashes of models and tensors: what changes one and what does not."""

import hashlib

import torch
from torch import nn

from toughen.models.hashes import hash_model, hash_tensor


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


def test_the_hash_of_a_model_knows_weights_buffers_types_and_how_they_show_themselves():
    model = network()
    before = hash_model(model)
    assert hash_model(network().train()) == hash_model(network().eval()) == before
    assert hash_model(network(eps=1e-4)) != before
    assert hash_model(model.double()) != before
    for change in (
        lambda net: net[0].bias.data.add_(1),
        lambda net: net[1].running_mean.add_(1),
        lambda net: setattr(net[2], "negative_slope", 0.2),
        lambda net: net.set_submodule("2", nn.ReLU()),
    ):
        other = network()
        change(other)
        assert hash_model(other) != before
