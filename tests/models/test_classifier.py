import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.models import Classifier, Normalize, PerImageStandardize, build

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Record(nn.Module):
    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.flatten(1)


def reference_per_image(x: np.ndarray) -> np.ndarray:
    rows = [(image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size)) for image in x]
    return np.stack(rows)


def test_the_network_sees_normalised_images() -> None:
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    net = Record()
    model = Classifier(net, mean=MEAN, std=STD)
    model(x)
    for channel in range(3):
        torch.testing.assert_close(net.seen[:, channel], (x[:, channel] - MEAN[channel]) / STD[channel])
    assert next(iter(model.children())) is model.normalize


def test_without_normalisation_images_pass_as_they_are() -> None:
    x = torch.rand(2, 3, 4, 4)
    net = Record()
    Classifier(net)(x)
    assert torch.equal(net.seen, x)
    # A network that writes into its input leaves the images alone.
    assert net.seen is not x


def test_the_state_holds_mean_and_std() -> None:
    state = build("small_cnn", num_classes=10, mean=MEAN, std=STD).state_dict()
    assert state["normalize.mean"].shape == state["normalize.std"].shape == (1, 3, 1, 1)
    assert state["normalize.mean"].flatten().tolist() == pytest.approx(MEAN)
    other = build("small_cnn", num_classes=10, mean=(0, 0, 0), std=(1, 1, 1))
    other.load_state_dict(state)
    assert torch.equal(other.normalize.get_buffer("std"), state["normalize.std"])


def test_per_image_agrees_with_numpy() -> None:
    x = torch.rand(5, 3, 6, 7, dtype=torch.float64)
    x[1] = 0.3  # constant: the floor acts on a deviation of 0
    x[2] = 0.3 + 1e-3 * x[2]  # deviation below the floor
    expected = reference_per_image(x.numpy())
    np.testing.assert_allclose(PerImageStandardize()(x).numpy(), expected, atol=1e-12)
    assert np.abs(expected[1]).max() < 1e-12


def test_per_image_is_differentiated_through_mean_and_deviation() -> None:
    x = torch.rand(3, 2, 3, 3, dtype=torch.float64)
    x[1] = 0.3 + 1e-3 * x[1]
    assert torch.autograd.gradcheck(PerImageStandardize(), x.requires_grad_())


def test_per_image_gradient_of_a_constant_image_is_finite() -> None:
    x = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    (PerImageStandardize()(x) * torch.randn(1, 3, 4, 4)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mean": MEAN}, "got mean without std"),
        ({"std": STD}, "got std without mean"),
        ({"mean": MEAN, "std": (0.2,)}, "got 3 and 1"),
        ({"mean": (), "std": ()}, "got 0 and 0"),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, "positive"),
        ({"mean": MEAN, "std": (0.2, float("nan"), 0.2)}, "positive"),
        ({"mean": MEAN, "std": STD, "per_image": True}, "got both"),
    ],
)
def test_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Classifier(nn.Identity(), **arguments)


def test_grey_images_are_not_broadcast_to_three_channels() -> None:
    with pytest.raises(ValueError, match="normalises 3 channels"):
        Normalize(MEAN, STD)(torch.rand(2, 1, 4, 4))
