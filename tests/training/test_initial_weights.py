"""What training starts from: weights of a file or of timm's, their normalisation, a trunk that stays."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cli.test_app import done, everything, failed, toughen
from conftest import tiny_data
from models.pretrained.test_timm import Net, Timm
from toughen import recipes
from toughen.data import DATA, ImageData, Split
from toughen.models import build
from toughen.models.registry import MODELS
from toughen.recipes import Recipe, RecipeError
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import run as run_module
from toughen.training import train
from toughen.training.loop import train_batch
from toughen.workflows import EvaluationSettings, evaluate

RECIPE = """
data: colour
model: {name: small_cnn, width: 2, norm: batch}
normalize: data
method: {name: free, replays: 2}
threat: linf:0.1
batch_size: 32
steps: 12
optimizer: {lr: 0.05, weight_decay: 0.01}
selection: {suite: pgd-1, every: 6}
overfitting_every: 0
save_every: 2
"""
TIMM = ("model=timm:resnet50", "model.pretrained=true", "normalize=pretrained")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)

State = dict[str, Tensor]


def colour() -> ImageData:
    """The tiny images in three equal channels."""
    data = tiny_data()
    train, test = (Split(part.images.repeat(1, 3, 1, 1), part.labels) for part in (data.train, data.test))
    return ImageData("colour", train, None, test, data.classes)


class Pretrained(Timm):
    """timm with weights for its networks, where they can be fetched."""

    refuses_to_fetch = False

    def create_model(self, name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        if pretrained and self.refuses_to_fetch:
            raise FileNotFoundError("no network")
        net = super().create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans)
        return filled(net, 5) if pretrained else net


def filled(net: nn.Module, seed: int) -> nn.Module:
    """Numbers as after training in everything below the head, BatchNorm's statistics too."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if "linear" not in name and "fc" not in name:
            tensor.copy_(torch.rand(tensor.shape, generator=draw).add(0.1) if tensor.ndim else torch.tensor(41))
    return net


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    module = Pretrained()
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A folder with recipe.yaml and theirs.pt, a network for seven classes; the state dict in that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATA, "colour", colour)
    Path("recipe.yaml").write_text(RECIPE)
    with torch.random.fork_rng():
        state = filled(build("small_cnn", num_classes=7, width=2, norm="batch").net, 3).state_dict()
        torch.save(state, "theirs.pt")
        yield state


def recipe(*changes: str) -> Recipe:
    return recipes.load("recipe.yaml", changes)


class Killed(Exception):
    """Stands for a kill in the middle of a batch."""


def killed_at(number: int, found: Recipe, out: str) -> State:
    """A run that was killed in that batch; the model's state as it was then."""
    states = []

    def dying(job, batch):
        if job.number == number:
            states.append({name: tensor.clone() for name, tensor in job.model.state_dict().items()})
            raise Killed
        train_batch(job, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "train_batch", dying)
        with pytest.raises(Killed):
            train(found, Path(out))
    return states[0]


def last(out: str) -> dict[str, State]:
    """The tensors of the newest checkpoint by group."""
    newest = latest_checkpoint(Path(out), warn=print)
    assert newest is not None
    names = ("weights", "average-0.9", "best-weights", "method", "optimizer")
    return {name: newest.tensors(name) for name in names if newest.has(name)}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def trunk(state: State) -> State:
    """What lies below the head, without the normalisation."""
    inner = {name.removeprefix("net."): tensor for name, tensor in state.items() if not name.startswith("normalize.")}
    return {name: tensor for name, tensor in inner.items() if not name.startswith(("linear.", "fc."))}


def head(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(("net.linear.", "net.fc."))}


def test_training_starts_from_the_very_weights_of_the_file_under_the_head_of_the_seed(weights: State):
    save_file({f"module.{name}": tensor.clone() for name, tensor in weights.items()}, "theirs.safetensors")
    before = killed_at(0, recipe(), "drawn")
    assert not same(trunk(before), trunk(weights))
    for file in ("theirs.pt", "theirs.safetensors"):
        found = killed_at(0, recipe(f"model.weights={file}"), f"from-{file}")
        assert same(trunk(found), trunk(weights))
        assert same(head(found), head(before))
        assert {name for name in before if name.startswith("normalize.")} == {"normalize.mean", "normalize.std"}
        assert all(torch.equal(found[name], before[name]) for name in before if name.startswith("normalize."))
    other = killed_at(0, recipe("model.weights=theirs.pt", "seed=1"), "other seed")
    assert same(trunk(other), trunk(weights))
    assert not same(head(other), head(before))


def test_a_head_for_as_many_classes_is_taken_over_too(weights: State):
    state = build("small_cnn", num_classes=4, width=2, norm="batch").net.state_dict()
    torch.save({"epoch": 3, "state_dict": state}, "four.pt")
    found = killed_at(0, recipe("model.weights=four.pt"), "run")
    assert same(
        {f"net.{name}": tensor for name, tensor in state.items()}, {k: v for k, v in found.items() if "net" in k}
    )


def test_training_starts_from_the_pretrained_weights(weights: State, timm: Pretrained):
    found = killed_at(0, recipe(*TIMM), "run")
    assert same(trunk(found), trunk(filled(Net(9, 3), 5).state_dict()))
    assert torch.equal(found["normalize.mean"].flatten(), torch.tensor(MEAN))
    assert torch.equal(found["normalize.std"].flatten(), torch.tensor(STD))
    assert found["net.fc.weight"].shape == (4, 4)
    assert [pretrained for _, pretrained in timm.asked].count(True) == 1


METHODS = {
    "free": ("method.replays=3",),
    "attacked as it trains": ("method={name: adversarial, attack: {name: pgd, steps: 2, attack_bn: train}}",),
    "weights perturbed": ("weight_perturbation={gamma: 0.1}", "method=natural"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_trunk_keeps_every_bit(weights: State, method: str):
    given = ("model.weights=theirs.pt", "averages=[0.9]", *METHODS[method])
    start = killed_at(0, recipe(*given), "start")
    train(recipe(*given, "model.freeze=true"), Path("frozen"))
    found = last("frozen")
    for group in ("weights", "average-0.9", "best-weights"):
        assert same(trunk(found[group]), trunk(weights)), group
        assert all(not torch.equal(tensor, head(start)[name]) for name, tensor in head(found[group]).items()), group
    # Momentum of weight and bias of the head alone.
    assert sorted(tensor.shape for tensor in found["optimizer"].values() if tensor.ndim) == [(4,), (4, 128)]
    train(recipe(*given), Path("free"))
    assert all(not torch.equal(tensor, weights[name]) for name, tensor in trunk(last("free")["weights"]).items())


@pytest.mark.parametrize("kind", ["file", "frozen", "pretrained", "pretrained and frozen"])
def test_a_killed_run_goes_on_to_the_same_bits_without_the_weights_it_started_from(
    weights: State, timm: Pretrained, kind: str
):
    given = TIMM if "pretrained" in kind else ("model.weights=theirs.pt",)
    given = (*given, "model.freeze=true") if "frozen" in kind else given
    found = recipe(*given)
    train(found, Path("whole"))
    for number in (1, 4):
        killed_at(number, found, f"killed-{number}")
    Path("theirs.pt").unlink()
    timm.asked.clear()
    for number in (1, 4):
        train(found, Path(f"killed-{number}"))
        a, b = last(f"killed-{number}"), last("whole")
        assert a.keys() == b.keys()
        assert all(same(a[group], b[group]) for group in a)
    # Once more, and evaluated: nothing is fetched or read for that either.
    text = done("train", "recipe.yaml", *given, "--out", "killed-1")
    assert "killed-1 is complete" in text
    assert "training starts from" not in text
    evaluate("whole", EvaluationSettings("pgd-1", limit=4))
    assert not any(pretrained for _, pretrained in timm.asked)


def bundled(weights: State, mean: list[float], std: list[float], name: str = "bundled.pt") -> str:
    """The weights in a file with their normalisation, as RobustBench's wrapper writes them."""
    state = {f"model.{key}": tensor for key, tensor in weights.items()}
    torch.save(
        {**state, **{key: torch.tensor(v).view(1, -1, 1, 1) for key, v in {"mean": mean, "std": std}.items()}}, name
    )
    return f"model.weights={name}"


def numbers(mean: list[float], std: list[float]) -> str:
    return f"normalize={{mean: {mean}, std: {std}}}"


CIFAR = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]


@pytest.mark.parametrize("apart", [0.0, 0.0019, -0.0019, 0.0021, -0.0021])
@pytest.mark.parametrize("place", range(6))
def test_normalisations_are_equal_to_within_two_thousandths(weights: State, apart: float, place: int):
    change = bundled(weights, *CIFAR)
    flat = [*CIFAR[0], *CIFAR[1]]
    flat[place] += apart
    given = numbers(flat[:3], flat[3:])
    if abs(apart) < 0.002:
        state = killed_at(0, recipe(change, given), "run")
        assert torch.equal(torch.cat([state["normalize.mean"], state["normalize.std"]]).flatten(), torch.tensor(flat))
    else:
        with pytest.raises(RecipeError, match=r"come with their normalisation, mean \[0\.4914, 0\.4822, 0\.4465\] and"):
            train(recipe(change, given), Path("run"))
        assert not Path("run").exists()


def test_one_number_in_the_file_stands_for_every_channel(weights: State):
    change = bundled(weights, [0.5], [0.25])
    train(recipe(change, numbers([0.5] * 3, [0.25] * 3)), Path("run"))
    for mean, std in (([0.5, 0.5, 0.6], [0.25] * 3), ([0.5] * 3, [0.25, 0.2, 0.25])):
        with pytest.raises(RecipeError, match=r'write "normalize=\{mean: \[0\.5, 0\.5, 0\.5\], std: \[0\.25, 0\.25, 0'):
            train(recipe(change, numbers(mean, std)), Path("other"))


def refused(*given: str) -> str:
    """The one sentence of the command line; nothing was written, and nothing fetched."""
    before = everything(Path())
    said = failed("train", "recipe.yaml", *given, "--out", "run")
    assert len(said.splitlines()) == 1
    assert everything(Path()) == before
    return said


def mends(said: str, *words: str, given: tuple[str, ...], file: str = "") -> str:
    """What is printed when those words of the sentence are typed after what was given, with a file for FILE."""
    assert all(word in said for word in words)
    return done("train", "recipe.yaml", *given, *(word.replace("FILE", file) for word in words), "--out", "run")


@pytest.mark.parametrize("own", ["data", "none", "per_image", "{mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}"])
@pytest.mark.parametrize("statistics", [CIFAR, ([0.5], [0.25])], ids=["three", "one"])
def test_weights_with_another_normalisation_are_refused_with_the_words_to_type(
    weights: State, own: str, statistics: tuple[list[float], list[float]]
):
    given = (bundled(weights, *statistics), f"normalize={own}", "steps=2")
    said = refused(*given)
    assert said.startswith(f"error: normalize: the weights in {Path('bundled.pt').resolve()} come with their normalis")
    (words,) = re.findall('"(.*)"', said)
    mends(said, words, given=given)
    state, (mean, std) = last("run")["weights"], statistics
    for found, wanted in ((state["normalize.mean"], mean), (state["normalize.std"], std)):
        assert torch.equal(found.flatten(), torch.tensor(wanted * (3 // len(wanted))))


def test_two_answers_to_what_training_starts_from(weights: State, timm: Pretrained):
    torch.save(Net(9, 3).state_dict(), "net.pt")
    given = (*TIMM, "model.weights=net.pt", "steps=2")
    said = refused(*given)
    assert "model: weights and pretrained both say what training starts from" in said
    assert "training starts from 2 tensors from" in mends(said, "model.pretrained=false", given=given)
    assert not any(pretrained for _, pretrained in timm.asked)
    Path("run").rename("first")
    assert "starts from the pretrained weights of" in mends(said, "model.weights=null", given=given)


def test_a_trunk_that_was_never_trained_is_not_held_fixed(weights: State, timm: Pretrained):
    given = ("model.freeze=true", "steps=2")
    said = refused(*given)
    assert "model.freeze: what would be held fixed was never trained" in said
    assert "weights below the head stay as they are" in mends(said, "model.weights=FILE", given=given, file="theirs.pt")
    Path("run").rename("first")
    # Another name starts the section anew, so that freeze is given once more.
    given = ("model=timm:resnet50", "normalize=pretrained", *given)
    said = refused(*given)
    assert "weights below the head stay as they are" in mends(said, "model.pretrained=true", given=given)


def test_a_file_that_is_not_there(weights: State, timm: Pretrained):
    for model in ("small_cnn", "timm:resnet50"):
        given = (f"model={model}", "model.weights=none.pt", "normalize=pretrained", "steps=2")
        said = refused(*given)
        assert "error: model.weights: there is no file " in said
        assert "none.pt; give one, or" in said
        mends(said, "model=timm:resnet50", "model.pretrained=true", "model.weights=null", given=given)
        Path("run").rename(f"run-{model[:4]}")


def test_a_network_whose_head_cannot_be_told(weights: State, monkeypatch: pytest.MonkeyPatch):
    def headless(num_classes: int, in_channels: int, *, pretrained: bool = False) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, num_classes, 8), nn.Flatten())

    monkeypatch.setitem(MODELS, "headless", headless)
    torch.save(headless(4, 3).state_dict(), "headless.pt")
    given = ("model.name=headless", "model.pretrained=true", "model.freeze=true", "steps=2")
    said = refused(*given)
    assert "error: model.freeze: Sequential does not end in a linear layer, so its head cannot be told from it" in said
    mends(said, "model.freeze=false", given=given)


def test_weights_of_another_network(weights: State):
    given = ("model={name: small_cnn, width: 3, norm: batch}", "model.weights=theirs.pt", "steps=2")
    said = refused(*given)
    assert "error: model.width: it is 3, and the weights in " in said
    assert "are of small_cnn with width: 2; write model.width=2, or leave model.width out" in said
    done("train", "recipe.yaml", *given, "model.width=2", "--out", "run")
    Path("broken.pt").write_bytes(Path("theirs.pt").read_bytes()[:100])
    Path("run").rename("first")
    assert "broken.pt is damaged or cut short" in refused("model.weights=broken.pt")
    weights["features.0.weight"][0] = torch.nan
    torch.save(weights, "theirs.pt")
    assert "'features.0.weight' holds NaN or infinity" in refused("model.weights=theirs.pt")


def test_the_normalisation_of_pretrained_weights(weights: State, timm: Pretrained):
    given = (*TIMM[:2], "steps=2")
    for own in ("data", "none", "per_image", numbers([0.5, 0.4, 0.3], [0.2, 0.2, 0.11]).removeprefix("normalize=")):
        said = refused(*given, f"normalize={own}")
        assert "the weights of timm:resnet50 were trained with mean [0.5, 0.4, 0.3] and std [0.2, 0.2, 0.1]" in said
    assert not any(pretrained for _, pretrained in timm.asked)
    mends(said, "normalize=pretrained", given=given)
    train(recipe(*given, numbers([0.5, 0.401, 0.3], [0.2, 0.2, 0.1])), Path("close"))
    # Nobody says how these were trained, and so anything goes.
    train(recipe(*given[1:], "model={name: hub:me/other, pretrained: true}", "normalize=none"), Path("unknown"))
    train(recipe("model=timm:resnet50", "normalize=none", "steps=2"), Path("drawn"))


def test_a_normalisation_that_nobody_knows(weights: State, timm: Pretrained):
    for model in ("small_cnn", "timm:new_net", "hub:me/other"):
        given = (f"model={model}", "normalize=pretrained", "steps=2")
        said = refused(*given)
        assert f"normalize: pretrained goes with a network of timm or of the Hub, and {model} does not say" in said
        assert 'write "normalize={mean: [...], std: [...]}" as the weights' in said
        done("train", "recipe.yaml", *given, numbers(*CIFAR), "--out", f"run-{model[:4]}")
    timm.failure = OSError("no network")
    assert "error: model: hub:me/net needs a file" in refused("model=hub:me/net", "normalize=pretrained")


def test_grey_images_for_weights_of_colour(tiny: str, weights: State, timm: Pretrained):
    given = ("data=tiny", *TIMM, "steps=2", "data.limit=32", "batch_size=16", "data.validation=4", "data.workers=0")
    said = refused(*given)
    assert "normalize: timm:resnet50 was trained on images of 3 channels, and these have 1; give data.size" in said
    mends(said, "data.size=224", given=given)
    # timm makes one channel of the first layer's three, and the normalisation is the user's.
    done("train", "recipe.yaml", *given, "normalize={mean: [0.4], std: [0.2]}", "--out", "grey")


def test_the_cost_is_printed_before_anything_is_fetched_or_trained(weights: State, timm: Pretrained):
    given = (*TIMM, "steps=2")
    timm.refuses_to_fetch = True
    result = toughen("train", "recipe.yaml", *given, "--out", "run")
    assert result.exit_code == 2
    assert "timm:resnet50 needs a file from the Hugging Face Hub" in result.stderr
    assert "give weights you have as model.weights=FILE" in result.stderr
    cost = result.stdout.splitlines()
    assert cost[0] == "predicted cost: 1 batches of 32, 2 optimiser steps"
    assert cost[2] == "  in all:  2 natural steps; validation and checks are not counted"
    validation = "validation: pgd-1 in linf:0.1 every 6 steps, the best by robust accuracy"
    assert cost[3:] == ["schedule: constant of learning rate 0.05", validation]
    assert not Path("run").exists()
    timm.refuses_to_fetch = False
    text = done("train", "recipe.yaml", *given, "model.freeze=true", "--out", "run").splitlines()
    assert text[:5] == cost
    assert text[5] == "training starts from the pretrained weights of timm:resnet50"
    assert text[6] == "112 weights below the head stay as they are"
    assert text[7].startswith("custom: free on 135 images of colour (15 held out, ")
