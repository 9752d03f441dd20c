"""timm imported beside a torchvision that was built for another torch.

timm needs torchvision. Where package indexes offer torch for the CPU and torchvision for CUDA, pip installs both
without a word, and `import torchvision` then ends in "operator torchvision::nms does not exist": its compiled part does
not load, and its Python part registers shapes for two operators of that part. Declaring these two, which nothing here
calls, lets all of its Python work: layers, transforms, networks. Its own image decoding stays off.
"""

import importlib
import sys
from types import ModuleType

import torch

SYMPTOM = "operator torchvision::nms does not exist"
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # the declarations go when their library does


def import_beside_torchvision(name: str) -> ModuleType:
    """Import a module that imports torchvision; a plain import where the two builds match."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if SYMPTOM not in str(error) or _declared:
            raise
    for module in [module for module in sys.modules if module.partition(".")[0] in ("torchvision", name)]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + _BOXES)
    _declared.append(library)
    return importlib.import_module(name)
