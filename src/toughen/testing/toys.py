"""Small classifiers and images on which promises are looked at: nothing is read, and nothing is global."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from toughen.data import Batch
from toughen.devices import own_draws
from toughen.noise import Stream, generator
from toughen.threat import Threat

SHAPE = (2, 4, 4)
# No whole number of a processor's vectors, so that every image of a batch stands in them in another way.
ODD_SHAPE = (3, 5, 5)
CLASSES = 4


def network(norm: Callable[[], nn.Module] = nn.Identity, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small smooth network for images of `SHAPE` with 4 classes, in inference mode."""
    with own_draws():
        torch.default_generator.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(2, 6, 3), norm(), nn.SiLU(), nn.Flatten(), nn.Linear(24, 4)).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
    return model


def normed(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with BatchNorm, whose running statistics are far from any batch's."""
    model = network(lambda: nn.BatchNorm2d(6))
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.fill_(0.3 if "mean" in name else 2.0)
    return model.to(dtype)


def images(dtype: torch.dtype = torch.float32, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Eight images with black and white pixels."""
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (x.float() * 1.5 - 0.25).clamp(0, 1).to(dtype)


def labels() -> Tensor:
    """What `normed` says of `images`, 2, but for two examples that are misclassified as they are."""
    return torch.tensor([2, 2, 0, 2, 2, 2, 1, 2])


class Rowwise(nn.Module):
    """A network for `ODD_SHAPE` whose sums run over one row alone, in float64: not even rounding knows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.first = nn.Parameter(torch.randn(6, 75, generator=draw, dtype=torch.float64) / 2)
        self.last = nn.Parameter(torch.randn(CLASSES, 6, generator=draw, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        hidden = ((x - 0.5).flatten(1).unsqueeze(1) * self.first).sum(2).tanh()
        return (hidden.unsqueeze(1) * self.last).sum(2)


class Linear(nn.Module):
    """Logits W x + b of images of `SHAPE`, for which the nearest boundary is known."""

    def __init__(self) -> None:
        super().__init__()
        draw = generator("testing", "linear")
        self.weight = nn.Parameter(torch.randn(CLASSES, 32, generator=draw) / 2)
        self.bias = nn.Parameter(torch.randn(CLASSES, generator=draw) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return x.flatten(1) @ self.weight.T + self.bias

    def distance(self, x: Tensor, threat: Threat) -> Tensor:
        """How far each image is from the nearest boundary in the threat's norm, [0, 1] disregarded, (N,)."""
        with torch.no_grad():
            logits, y = self(x), self(x).argmax(1)
            gaps = logits.gather(1, y.unsqueeze(1)) - logits
            toward = self.weight.unsqueeze(0) - self.weight[y].unsqueeze(1)
            slopes = toward.abs().sum(2) if threat.norm == "linf" else toward.norm(dim=2)
            return (gaps / slopes).scatter(1, y.unsqueeze(1), torch.inf).amin(1)

    def one_step(self, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """What FGSM finds, (N, C, H, W), worked out without anything that an attack is made of."""
        with torch.no_grad():
            # The gradient of the cross-entropy: the weights of every class by its probability, less those of the label.
            uphill = (self(x).softmax(1) @ self.weight - self.weight[y]).reshape(x.shape)
            length = torch.as_tensor(threat.eps)
            if threat.norm == "linf":
                return x + length * uphill.sign()
            return x + length * uphill / uphill.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def inner_images(n: int = 100) -> Tensor:
    """Images of `SHAPE` in [0.3, 0.7], so that [0, 1] is out of reach."""
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=generator("testing", "inner"))


BATCH, EXAMPLES = 6, 40


def trained(norm: Callable[[], nn.Module] = nn.Identity) -> nn.Module:
    """A network of `network`'s kind in training mode, in float64, in which methods are run."""
    return network(norm, torch.float64).train()


def batch(number: int = 0, n: int = BATCH, *, rank: int = 0, world: int = 1) -> Batch:
    """A rank's rows of the global batch of that number: n examples, none of whose positions is its row."""
    draw = Stream(("testing", number), torch.arange(n))
    x = (draw.uniform(SHAPE, dtype=torch.float64) + 1) / 2
    y = draw.child("y").integers(CLASSES)
    index = EXAMPLES - 1 - (torch.arange(n) + 5 * number) % (EXAMPLES - BATCH)
    rows = torch.arange(n)[rank::world]
    noise = Stream((0, "train", number), rows, block=n)
    return Batch(x=x[rows], y=y[rows], index=index[rows], noise=noise, size=n, classes=CLASSES)
