"""Training: the loop, and the run around it.

What acts on the weights around a step: docs/methods/weights.md. Papers are called Free, Limits, IAAT and Bilateral as
in docs/methods/README.md, Papers.
"""

from toughen.training.run import train

__all__ = ["train"]
