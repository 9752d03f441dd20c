"""States of a model: put in exactly, taken back exactly, whatever happens inside."""

import pytest
import torch
from torch import Tensor, nn

from toughen.modes import attacking, channels_last, evaluating, frozen, plain

CONTEXTS = {
    "evaluating": evaluating,
    "frozen": frozen,
    "eval": lambda model: attacking(model, "eval"),
    "train": lambda model: attacking(model, "train"),
    "batch": lambda model: attacking(model, "batch"),
}


@pytest.fixture
def model() -> nn.Module:
    """A model in a mixed state: one BatchNorm in inference mode, one without statistics, one frozen weight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )
    model[1].eval()
    model[0].weight.requires_grad_(False)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 2) if "var" in name else nn.init.normal_(buffer)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> tuple[object, ...]:
    return (
        [module.training for module in model.modules()],
        [getattr(module, "track_running_stats", None) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
    )


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


@pytest.mark.parametrize("name", list(CONTEXTS))
def test_what_was_found_is_restored(model, name):
    before = state(model)
    assert len(set(before[0])) == len(set(before[2])) == 2  # pyright: ignore[reportArgumentType]
    with CONTEXTS[name](model):
        assert state(model) != before
    assert state(model) == before


@pytest.mark.parametrize("name", list(CONTEXTS))
def test_what_was_found_is_restored_after_an_error(model, name):
    before = state(model)

    def fail() -> None:
        # each context answers for what it changes itself
        model.requires_grad_(False) if name == "frozen" else model.train()
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"), CONTEXTS[name](model):
        fail()
    assert state(model) == before


@pytest.mark.parametrize("name", list(CONTEXTS))
def test_contexts_nest(model, name):
    before = state(model)
    with CONTEXTS[name](model):
        within = state(model)
        for inner in CONTEXTS.values():
            with inner(model):
                pass
            assert state(model) == within
    assert state(model) == before


def test_evaluating_is_inference_mode_and_nothing_else(model):
    grads = state(model)[2]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert state(model)[2] == grads


def test_frozen_parameters_get_no_gradient(model, x):
    training = state(model)[0]
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert state(model)[0] == training
        model(x.requires_grad_()).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert x.grad is not None


@pytest.mark.parametrize("name", ["eval", "train", "batch"])
def test_an_attack_leaves_no_gradients(model, x, name):
    with attacking(model, name):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model(x.requires_grad_()).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def normalised(norm: nn.BatchNorm2d, z: Tensor, batch: bool) -> Tensor:
    """BatchNorm by its formula, with the batch's or the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = z.mean((0, 2, 3)) if batch else norm.running_mean
    var = z.var((0, 2, 3), unbiased=False) if batch else norm.running_var
    scaled = (z - mean.reshape(-1, 1, 1)) / (var.reshape(-1, 1, 1) + norm.eps).sqrt()
    return scaled * norm.weight.reshape(-1, 1, 1) + norm.bias.reshape(-1, 1, 1)


@pytest.mark.parametrize(("name", "batch"), [("eval", False), ("batch", True), ("train", True)])
def test_batch_norm_uses_the_statistics_named(model, x, name, batch):
    norm = model[1]
    # Found in the other mode than the one asked for.
    norm.train(not batch)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    z = model[0](x)
    expected = normalised(norm, z, batch)
    with attacking(model, name):
        torch.testing.assert_close(norm(z), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["eval", "batch"])
def test_running_statistics_stand_still(model, x, name):
    before = buffers(model)
    with attacking(model, name):
        first = model(x)
        # no dropout in either, so the same numbers again
        assert torch.equal(model(x), first)
    assert moved(model, before) == set()


def test_training_mode_moves_the_running_statistics(model, x):
    before, z = buffers(model), model[0](x)
    with attacking(model, "train"):
        assert all(module.training for module in model.modules())
        model(x)
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert moved(model, before) == {f"{path}.{name}" for path in ("1", "2.1") for name in statistics}
    assert model[1].num_batches_tracked == before["1.num_batches_tracked"] + 1
    expected = 0.9 * before["1.running_mean"] + 0.1 * z.mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, expected)


def test_batch_mode_tracks_again_afterwards(model, x):
    with attacking(model, "batch"):
        model(x)
    before = buffers(model)
    model.train()(x)
    assert {"1.running_mean", "2.1.running_var", "1.num_batches_tracked"} <= moved(model, before)
    assert model[3].track_running_stats is False


def test_batch_mode_is_inference_for_all_but_batch_norm(model):
    with attacking(model, "batch"):
        training = {name for name, module in model.named_modules() if module.training}
    assert training == {"1", "2.1"}


def test_another_name_is_refused_and_nothing_touched(model):
    before = state(model)
    with (
        pytest.raises(ValueError, match="attack_bn is 'Eval'; it must be one of eval, train, batch"),
        attacking(model, "Eval"),  # pyright: ignore[reportArgumentType]
    ):
        pass
    assert state(model) == before


def test_a_plain_model_is_itself(model):
    assert plain(model) is model


def test_a_layer_of_one_channel_is_laid_out_too():
    model = nn.Conv2d(1, 4, 3)
    with channels_last(model):
        assert model.weight.stride() == (9, 1, 3, 1)
    assert model.weight.stride() == (9, 9, 3, 1)


def test_channels_last_changes_the_layout_alone_and_brings_the_very_tensors_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected, weight = model(x), model[0].weight
    before = {name: (tensor.data_ptr(), tensor.stride()) for name, tensor in model.state_dict().items()}
    assert isinstance(weight, torch.Tensor)
    with channels_last(model):
        assert model[0].weight is weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
        assert model[0](x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    assert weight.is_contiguous()

    def fails() -> None:
        with channels_last(model):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fails()
    assert {name: (tensor.data_ptr(), tensor.stride()) for name, tensor in model.state_dict().items()} == before
