"""Training: the loop, and the run around it."""

from toughen.training.run import train

__all__ = ["train"]
