from pathlib import Path

import numpy as np
import pytest
import torch

from toughen.corruptions import corrupt

FROZEN = np.load(Path(__file__).parents[1] / "frozen" / "corruptions.npz")
NAMES = sorted({key.partition("/")[0] for key in FROZEN.files} - {"clean"})


def test_all_that_is_deterministic_is_frozen():
    assert len(NAMES) == 8
    assert len(FROZEN.files) == 1 + 8 * 5


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_imagecorruptions(name, severity):
    images = torch.from_numpy(FROZEN["clean"]).permute(0, 3, 1, 2)
    ours = corrupt(images, name, severity, constants="imagenet").permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(ours, FROZEN[f"{name}/{severity}"])
