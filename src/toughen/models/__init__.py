"""Image classifiers: networks by name, with normalisation as their first layer."""

from toughen.models.classifier import Classifier, Normalize, PerImageStandardize
from toughen.models.registry import MODELS, build

__all__ = ["MODELS", "Classifier", "Normalize", "PerImageStandardize", "build"]
