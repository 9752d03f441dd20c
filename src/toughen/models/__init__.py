"""Image classifiers: networks by name, with normalisation as their first layer, and trained weights from files."""

from toughen.models.classifier import Classifier, Normalize, PerImageStandardize
from toughen.models.ensemble import Ensemble
from toughen.models.pretrained.files import read_state
from toughen.models.pretrained.finetune import find_head, freeze_trunk, head_parameters, replace_head, trunk_parameters
from toughen.models.pretrained.key_names import identify
from toughen.models.pretrained.load import Loaded, load_weights
from toughen.models.pretrained.timm_hub import pretrained_normalization
from toughen.models.registry import MODELS, build

__all__ = [
    "MODELS",
    "Classifier",
    "Ensemble",
    "Loaded",
    "Normalize",
    "PerImageStandardize",
    "build",
    "find_head",
    "freeze_trunk",
    "head_parameters",
    "identify",
    "load_weights",
    "pretrained_normalization",
    "read_state",
    "replace_head",
    "trunk_parameters",
]
