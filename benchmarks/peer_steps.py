"""One training step of ours, of other libraries and of plain loops, all of them on the same network and images.

    setting = Setting("wrn-16-4", images(512), 128)
    step = torchattacks(setting)
    step()

PGD-10 at 8/255 with steps of 2/255, from a random start, BatchNorm in evaluation mode during the attack, then one step
of SGD. `peers.py` times them.
"""

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toughen import models
from toughen.data import ImageData, Split
from toughen.noise import generator
from toughen.recipes.text import build
from toughen.training.loop import train_batch
from toughen.training.setup import set_up

STEPS, EPS, STEP_SIZE = 10, 8 / 255, 2 / 255
PGD = {"name": "pgd", "steps": STEPS, "step_size": "2/255"}
RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4

Step = Callable[[], object]


@dataclass
class Setting:
    """What all steps share.

    Attributes:
        network: name of the network.
        data: random images.
        batch_size: examples in a step.
        device: where all of it happens.
    """

    network: str
    data: ImageData
    batch_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def net(self) -> nn.Module:
        """The network, weights random."""
        return models.build(self.network, num_classes=10, in_channels=3).train().to(self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """A batch that is already there."""
        split = self.data.train
        assert isinstance(split, Split)
        x, y = split.images[: self.batch_size].float() / 255, split.labels[: self.batch_size]
        return x.to(self.device), y.to(self.device)


def images(n: int) -> ImageData:
    """Random CIFAR-shaped images: what they show does not change what a step costs."""
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=generator("benchmark"), dtype=torch.uint8)
    split = Split(pixels, torch.arange(n) % 10)
    return ImageData("random", split, None, split, tuple("0123456789"))


def ours(method: str) -> Callable[[Setting], Step]:
    """A step of ours by a method: its batch made (crop, flip), guarded, metered."""

    def make(setting: Setting) -> Step:
        recipe = build(
            {
                "data": {"source": "random", "pad": 4, "flip": True},
                "model": setting.network,
                "normalize": "none",
                "threat": "linf:8/255",
                "method": {"name": method, "attack": PGD},
                "batch_size": setting.batch_size,
                "steps": 10**6,
                "optimizer": {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY},
            }
        )
        n = len(setting.data.train)
        job, batches = set_up(recipe, setting.data, setting.data.train, torch.arange(n), setting.device)
        return lambda: train_batch(job, batches[job.number])

    return make


def sgd(net: nn.Module, *, fused: bool | None = None) -> torch.optim.Optimizer:
    """The optimiser of all."""
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=fused)


def update(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One optimiser step in plain torch."""
    net.train()
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def bare(setting: Setting) -> Step:
    """A natural step in plain torch: the unit."""
    net, (x, y) = setting.net(), setting.batch()
    optimizer = sgd(net, fused=True)
    return lambda: update(net, optimizer, x, y)


def naive(setting: Setting) -> Step:
    """The loop that many repositories have: `loss.backward()` in the attack, which fills the weights' gradients too."""
    net, (x, y) = setting.net(), setting.batch()
    optimizer = sgd(net)

    def step() -> None:
        net.eval()
        delta = torch.empty_like(x).uniform_(-EPS, EPS)
        delta = ((x + delta).clamp(0, 1) - x).requires_grad_()
        for _ in range(STEPS):
            F.cross_entropy(net(x + delta), y).backward()
            assert delta.grad is not None
            moved = (delta.detach() + STEP_SIZE * delta.grad.sign()).clamp(-EPS, EPS)
            delta = ((x + moved).clamp(0, 1) - x).requires_grad_()
        update(net, optimizer, (x + delta).detach(), y)

    return step


def torchattacks(setting: Setting) -> Step:
    """`torchattacks.PGD` in a plain loop, as its README has it."""
    library = importlib.import_module("torchattacks")
    net, (x, y) = setting.net(), setting.batch()
    attack = library.PGD(net, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=True)
    optimizer = sgd(net)
    return lambda: update(net, optimizer, attack(x, y), y)


def silent(step: Step) -> Step:
    """The step without its progress bars."""

    def muted() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            step()

    return muted


def art_classifier(setting: Setting) -> Any:
    """ART's wrapper of the network."""
    classifiers = importlib.import_module("art.estimators.classification")
    net = setting.net()
    return classifiers.PyTorchClassifier(
        net,
        loss=nn.CrossEntropyLoss(),
        optimizer=sgd(net),
        input_shape=(3, 32, 32),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu" if setting.device.type == "cpu" else "gpu",
    )


def art_madry(setting: Setting) -> Step:
    """ART's Madry trainer, fitted to one batch; its attack's batches of 32 made as large as the others'."""
    trainers = importlib.import_module("art.defences.trainer")
    trainer = trainers.AdversarialTrainerMadryPGD(
        art_classifier(setting), nb_epochs=1, batch_size=setting.batch_size, eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS
    )
    trainer.attack.set_params(batch_size=setting.batch_size)
    x, y = (tensor.cpu().numpy() for tensor in setting.batch())
    return silent(lambda: trainer.fit(x, y))


def art_trades(setting: Setting) -> Step:
    """ART's TRADES trainer on one batch. It attacks the cross-entropy, not the divergence: the cost is the same."""
    trainers = importlib.import_module("art.defences.trainer")
    attacks = importlib.import_module("art.attacks.evasion")
    classifier = art_classifier(setting)
    attack = attacks.ProjectedGradientDescent(
        classifier,
        eps=EPS,
        eps_step=STEP_SIZE,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=setting.batch_size,
        verbose=False,
    )
    trainer = trainers.AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
    x, y = (tensor.cpu().numpy() for tensor in setting.batch())
    return silent(lambda: trainer.fit(x, y, batch_size=setting.batch_size, nb_epochs=1))


class OnlyImages(nn.Module):
    """A network that takes the options which `robustness` passes to all of them, unset."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, **options: bool) -> Tensor:
        """Logits."""
        assert not any(options.values())
        return self.net(x)


def madrylab(setting: Setting) -> Step:
    """`AttackerModel` of MadryLab's robustness in the loop of its trainer, which does not import.

    It moves everything to a GPU, so `Tensor.cuda` goes to the setting's device here. The last iterate is taken and the
    start random, as in all others; by its defaults the best iterate is, for one forward pass more.
    """
    attacker = importlib.import_module("robustness.attacker")
    dataset = mock.Mock(mean=torch.zeros(3), std=torch.ones(3))
    model = attacker.AttackerModel(OnlyImages(setting.net()), dataset).train().to(setting.device)
    x, y = setting.batch()
    optimizer = sgd(model)
    attack = {"constraint": "inf", "eps": EPS, "step_size": STEP_SIZE, "iterations": STEPS}

    def step() -> None:
        with mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor.to(setting.device)):
            logits, _ = model(x, target=y, make_adv=True, random_start=True, use_best=False, **attack)
        loss = F.cross_entropy(logits, y)
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


ENTRANTS: dict[str, dict[str, Callable[[Setting], Step]]] = {
    "PGD-10": {
        "ours": ours("adversarial"),
        "torchattacks 3.5.1 in a plain loop": torchattacks,
        "MadryLab robustness 1.2.1, attacker": madrylab,
        "naive loop": naive,
        "ART 1.20.1, Madry trainer": art_madry,
    },
    "TRADES-10": {"ours": ours("trades"), "ART 1.20.1, TRADES trainer": art_trades},
}
"""Training -> who does it. The first of each is what the others are held against."""
