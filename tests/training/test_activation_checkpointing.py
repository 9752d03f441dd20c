import copy

import pytest
import torch
from torch import Tensor, nn

from method_cases import CASES, Case
from toughen import models
from toughen.models.cost import counted
from toughen.models.networks.preact_resnet import PreActResNet18
from toughen.recipes import RecipeError
from toughen.recipes.text import build
from toughen.training.activation_checkpointing import blocks, recomputed
from toughen.training.loop import Job, train_batch
from toughen.training.setup import load_data, set_up, splits
from toughen.training.state import capture

MODEL = {"name": "preact_resnet18", "width": 2}


def job_of(case: Case, *, checkpointing: bool, model: object = MODEL):
    recipe = build(
        {
            "data": {"source": "tiny", "validation": 16},
            "model": model,
            "method": case.settings,
            "threat": "linf:0.1",
            "batch_size": 6,
            "steps": 60,
            "activation_checkpointing": checkpointing,
            **case.recipe,
        }
    )
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    return set_up(recipe, data, split, index, torch.device("cpu"))


def tensors(job: Job) -> dict[str, Tensor]:
    found, _ = capture(job, slots=6)
    return {f"{group}.{name}": value for group, members in found.items() for name, value in members.items()}


def test_blocks_are_the_outermost_modules_of_parts_that_stand_in_a_row():
    counts = {"preact_resnet18": 8, "resnet50": 16, "wrn-16-4": 6, "madry-w32-10": 15, "small_cnn": 0}
    with torch.device("meta"):
        for name, count in counts.items():
            assert len(blocks(models.build(name, num_classes=10, in_channels=3))) == count, name


@pytest.mark.parametrize("name", ["natural", "free", "adversarial-train", "trades", "weight-perturbation", "mixup"])
def test_training_is_the_same_to_the_bit(tiny: str, name: str):
    (plain, batches), (again, _) = (job_of(CASES[name], checkpointing=on) for on in (False, True))
    for number in range(3):
        with counted(plain.model) as one, counted(again.model) as other:
            train_batch(plain, batches[number])
            train_batch(again, batches[number])
        assert one == other
    expected = tensors(plain)
    for key, value in tensors(again).items():
        assert torch.equal(value, expected[key]), key
    assert all("forward" not in vars(module) for module in again.model.modules())


def test_of_a_block_its_input_alone_is_kept():
    kept: dict[int, int] = {}

    def saved(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model = models.build("preact_resnet18", num_classes=4, in_channels=3, width=4)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    inputs: list[int] = []
    for block in (chosen := blocks(model)):
        block.register_forward_pre_hook(lambda module, given: inputs.append(given[0].nbytes))
    net = model.net
    assert isinstance(net, PreActResNet18)
    with recomputed(chosen), torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        net.groups(net.stem(x))
    assert sum(size for place, size in kept.items() if place not in weights) == x.nbytes + sum(inputs)


def test_dropout_draws_the_same_again():
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    model = nn.Sequential(inside)
    x = torch.rand(5, 4)
    found = []
    for chosen in ([], [inside]):
        torch.manual_seed(1)
        model.zero_grad()
        with recomputed(chosen):
            model(x).sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found))


def test_a_copy_made_meanwhile_is_a_plain_model():
    model = models.build("preact_resnet18", num_classes=4, in_channels=3, width=2).eval()
    x = torch.rand(2, 3, 16, 16)
    expected = model(x)
    with recomputed(blocks(model)):
        assert torch.equal(model(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_a_model_without_blocks_is_refused_with_the_way_out(tiny: str):
    with pytest.raises(RecipeError, match=r"small_cnn has no blocks .* use activation_checkpointing=false"):
        job_of(CASES["natural"], checkpointing=True, model={"name": "small_cnn", "width": 2})
