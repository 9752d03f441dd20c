"""On which device a run computes, and what is done with its weights.

device = chosen_device("auto")              # the best that is there
device = device_of_results(recipe.device)   # that of the run, or the best, where it ran on another machine
"""

import torch

from toughen import devices
from toughen.parallel import ranks
from toughen.recipes import RecipeError


def chosen_device(name: str) -> torch.device:
    """The device of a recipe; "auto" is the best that is there, of several on a machine this process's.

    Raises:
        RecipeError: for one that is not there, or one on which the processes that torchrun started cannot exchange.
    """
    found = devices.best() if name == "auto" else torch.device(name)
    if name == "auto" and ranks.started() > 1 and not ranks.exchanges(found):
        found = torch.device("cpu")
    device = ranks.local_device(found)
    given = found.index is None and device.index
    if missing := devices.absence(device, f"{device}, the turn of process {device.index}," if given else name):
        remedy = "start as many processes as there are GPUs" if given else "use device=cpu or device=auto"
        raise RecipeError(f"device: {missing}; {remedy}")
    if ranks.started() > 1 and not ranks.exchanges(device):
        raise RecipeError(
            f"device: {ranks.started()} processes cannot exchange tensors on {name}; start one, or use device=cpu"
        )
    return device


def device_of_results(name: str) -> torch.device:
    """The device of a recipe for what is done with its weights: the best that is there where that one is not."""
    try:
        return chosen_device(name)
    except RecipeError:
        return chosen_device("auto")
