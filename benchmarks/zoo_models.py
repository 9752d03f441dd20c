"""A zoo of small networks of different making, on real images: what `zoo.py` measures its suites on.

    member = ZOO["digits-pgd"]
    model, x, y = member.open(cache, data, n=200)      # trained once, then read from the cache

Digits are those that the package ships, 14 x 14; photographs are CIFAR-10's, 16 x 16. Each takes seconds to minutes of
one thread. Sources: defensive distillation, Papernot et al. 2016; collapse of one-step training, Wong et al. 2020.
"""

from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hundred_classes import GROUPS, centres
from toughen.attacks import AttackSpec
from toughen.data import load
from toughen.data.base import Examples
from toughen.modes import attacking
from toughen.noise import Stream, generator
from toughen.threat import L2, Linf, Threat

IMAGES = 5_000
BATCH = 128
TEMPERATURE = 20.0
ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "tanh": nn.Tanh}
Labelled = tuple[Tensor, Tensor]


def convolutions(
    channels: int, side: int, classes: int, *, width: int, activation: str, batchnorm: bool, pool: bool
) -> nn.Module:
    """Three 3 x 3 convolutions, the first two of stride 2 or followed by max-pooling, and a linear layer."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, 1 if pool else stride, padding=1)]
        layers += [nn.BatchNorm2d(outputs)] if batchnorm else []
        layers += [ACTIVATIONS[activation]()]
        return layers + ([nn.MaxPool2d(stride)] if pool and stride > 1 else [])

    end = -(-side // 2) if not pool else side // 2
    end = -(-end // 2) if not pool else end // 2
    layers = [*block(channels, width, 2), *block(width, 2 * width, 2), *block(2 * width, 2 * width, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * end * end, classes))


def perceptron(pixels: int, classes: int, *, width: int, layers: int, activation: str = "relu") -> nn.Module:
    """Hidden layers of equal width."""
    sizes = [pixels, *[width] * layers]
    hidden = [part for i in range(layers) for part in (nn.Linear(sizes[i], sizes[i + 1]), ACTIVATIONS[activation]())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


@dataclass(frozen=True)
class Member:
    """How a network of the zoo is made, and in which ball it is attacked.

    Args:
        data: "digits", "digits-7x7" or "cifar10".
        eps: radius of the evaluation.
        norm: of its ball and of training's.
        classes: 10, the first so many of them, or 100: each of CIFAR-10's in ten groups.
        width: channels of the first convolution, or hidden units.
        layers: hidden layers of a perceptron; 0 for convolutions.
        activation: a key of `ACTIVATIONS`.
        batchnorm: after each convolution.
        pool: max-pooling in place of strides.
        attack: with which it is trained; none for natural training.
        train_eps: radius of training.
        smoothing: of labels.
        distilled: from a network of its own kind, both trained at a temperature of 20.
        epochs: over 5,000 photographs or 4,000 digits.
        rate: the highest learning rate.
        held_out: whether nothing was chosen by looking at it.
    """

    data: str
    eps: float
    norm: str = "linf"
    classes: int = 10
    width: int = 12
    layers: int = 0
    activation: str = "relu"
    batchnorm: bool = False
    pool: bool = False
    attack: AttackSpec | None = None
    train_eps: float = 0.0
    smoothing: float = 0.0
    distilled: bool = False
    epochs: int = 15
    rate: float = 0.01
    held_out: bool = False

    @property
    def threat(self) -> Threat:
        """The ball of its evaluation."""
        return self._ball(self.eps)

    def _ball(self, eps: float) -> Threat:
        return Linf(eps) if self.norm == "linf" else L2(eps)

    def images(self, data: str | None) -> tuple[Labelled, Labelled]:
        """Training and test images with their classes."""
        (x, y), (x_test, y_test) = _images(self.data, data)
        if self.classes > 10:
            return (x, (grouped := _grouped(data))[0]), (x_test, grouped[1])
        return _first(x, y, self.classes), _first(x_test, y_test, self.classes)

    def network(self, x: Tensor) -> nn.Module:
        """Untrained, for images like these."""
        if self.layers:
            return perceptron(
                x[0].numel(), self.classes, width=self.width, layers=self.layers, activation=self.activation
            )
        shape = {"width": self.width, "activation": self.activation, "batchnorm": self.batchnorm, "pool": self.pool}
        return convolutions(x.shape[1], x.shape[2], self.classes, **shape)

    def open(self, name: str, cache: Path, data: str | None, n: int) -> tuple[nn.Module, Tensor, Tensor]:
        """The trained network in inference mode, and the first test images; trained where the cache has none."""
        train, (x, y) = self.images(data)
        made = {key: value for key, value in asdict(self).items() if key not in ("eps", "held_out")}
        made["attack"] = self.attack and self.attack.model_dump(mode="json")
        path = cache / f"{name}-{sha256(repr(made).encode()).hexdigest()[:12]}.safetensors"
        model = self.network(x)
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            model = self._trained(name, *train)
            save_file(model.state_dict(), path)
        model.load_state_dict(load_file(path))
        return model.eval(), x[:n], y[:n]

    def _trained(self, name: str, x: Tensor, y: Tensor) -> nn.Module:
        targets = F.one_hot(y, self.classes).float()
        targets = targets * (1 - self.smoothing) + self.smoothing / self.classes
        if self.distilled:
            teacher = self._fit(f"{name}, teacher", x, targets, TEMPERATURE)
            with torch.no_grad():
                targets = torch.cat([(teacher(part) / TEMPERATURE).softmax(1) for part in x.split(500)])
            return self._fit(name, x, targets, TEMPERATURE)
        return self._fit(name, x, targets, 1.0)

    def _fit(self, name: str, x: Tensor, targets: Tensor, temperature: float) -> nn.Module:
        """Adam over a triangle of learning rates."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(sha256(name.encode()).hexdigest()[:8], 16))
            model = self.network(x)
        steps = self.epochs * (len(x) // BATCH)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps, cycle_momentum=False)
        for step in range(steps):
            place = step % (len(x) // BATCH)
            order = torch.randperm(len(x), generator=generator(name, step // (len(x) // BATCH)))
            rows = order[place * BATCH : (place + 1) * BATCH]
            batch, of = x[rows], targets[rows]
            if self.attack is not None:
                noise = Stream((name, step), rows=torch.arange(BATCH), block=BATCH)
                with attacking(model, "eval"):
                    batch = self.attack(model, batch, of, threat=self._ball(self.train_eps), noise=noise)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(batch) / temperature, of).backward()
            optimizer.step()
            schedule.step()
        return model.eval()


def _first(x: Tensor, y: Tensor, classes: int) -> Labelled:
    rows = y < classes
    return x[rows], y[rows]


@cache
def _images(name: str, data: str | None) -> tuple[Labelled, Labelled]:
    """Images at half their size, or a quarter."""
    loaded = load(str(data) if name == "cifar10" else "mnist5k")
    factor = 4 if name == "digits-7x7" else 2

    def part(split: Examples, n: int) -> Labelled:
        some = split.take(torch.arange(min(n, len(split))))
        return F.avg_pool2d(some.float_images(), factor), some.labels

    return part(loaded.train, IMAGES), part(loaded.test, 2_000)


@cache
def _grouped(data: str | None) -> tuple[Tensor, Tensor]:
    """Classes 0 to 99: each of CIFAR-10's in groups of similar images, found by k-means on 4 x 4 thumbnails."""
    (x, y), (x_test, y_test) = _images("cifar10", data)
    train, test = (F.adaptive_avg_pool2d(images, 4).flatten(1) for images in (x, x_test))
    labels, of_test = y * GROUPS, y_test * GROUPS
    for label in range(10):
        found = centres(train[y == label], label)
        labels[y == label] += torch.cdist(train[y == label], found).argmin(1)
        of_test[y_test == label] += torch.cdist(test[y_test == label], found).argmin(1)
    return labels, of_test


def _spec(name: str, **settings: object) -> AttackSpec:
    return AttackSpec.model_validate({"name": name, **settings})


PGD = _spec("pgd", steps=5)
FGSM = _spec("fgsm")
RANDOM_FGSM = _spec("rs_fgsm")

ZOO: dict[str, Member] = {
    # looked at while `adaptive` was made
    "digits-pgd": Member("digits", 0.2, attack=PGD, train_eps=0.2),
    "digits-fgsm-collapsed": Member("digits", 0.2, attack=FGSM, train_eps=0.3, epochs=30),
    "digits-natural-sigmoid": Member("digits", 0.04, activation="sigmoid", epochs=30),
    "digits-distilled-batchnorm": Member("digits", 0.05, batchnorm=True, distilled=True),
    "digits-l2-silu": Member("digits", 1.0, "l2", activation="silu", attack=PGD, train_eps=1.0),
    "photos-pgd-batchnorm": Member("cifar10", 4 / 255, width=8, batchnorm=True, attack=PGD, train_eps=8 / 255),
    "photos-2-classes": Member("cifar10", 8 / 255, classes=2, width=8, attack=PGD, train_eps=8 / 255, epochs=25),
    # held out
    "digits-fgsm-pool": Member("digits", 0.06, pool=True, attack=FGSM, train_eps=0.25, epochs=30, held_out=True),
    "digits-perceptron": Member("digits", 0.1, width=48, layers=2, attack=PGD, train_eps=0.1, epochs=30, held_out=True),
    "photos-fgsm-random": Member(
        "cifar10", 4 / 255, width=8, batchnorm=True, attack=RANDOM_FGSM, train_eps=16 / 255, epochs=25, held_out=True
    ),
    "photos-distilled-silu": Member("cifar10", 3 / 255, width=8, activation="silu", distilled=True, held_out=True),
    "photos-smoothed-pool": Member(
        "cifar10", 1 / 255, width=8, batchnorm=True, pool=True, smoothing=0.2, held_out=True
    ),
    "photos-5-classes-sigmoid": Member(
        "cifar10",
        3 / 255,
        classes=5,
        width=8,
        activation="sigmoid",
        batchnorm=True,
        attack=PGD,
        train_eps=3 / 255,
        epochs=25,
        held_out=True,
    ),
    "photos-100-groups-l2": Member(
        "cifar10", 0.15, "l2", classes=100, width=8, attack=PGD, train_eps=0.2, held_out=True
    ),
}
"""The zoo. Radii of evaluation were set by short PGD alone, to spread what is left from 10 to 90 %."""
