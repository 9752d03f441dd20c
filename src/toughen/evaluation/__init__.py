"""Evaluation: a named suite of attacks, run worst-case over fixed examples, every adversarial example re-verified.

Example:
    evaluation = evaluate(model, x, y, threat=Linf(8 / 255), suite="autoattack")
    evaluation.clean_accuracy, evaluation.robust_accuracy, evaluation.unreliable
    evaluation.write(Path("runs/mine/evaluation"))

Whose protocol each suite is: docs/methods/evaluation.md. Papers are called Free, Limits, IAAT and Bilateral as in
docs/methods/README.md, Papers.
"""

from toughen.evaluation.audit import audit
from toughen.evaluation.checkup import Checkup, check
from toughen.evaluation.corruption_result import CorruptionResult, MeanCorruptionError, mean_corruption_error
from toughen.evaluation.corruptions import corruption_accuracy
from toughen.evaluation.evaluate import evaluate
from toughen.evaluation.findings import Audit, Finding
from toughen.evaluation.gradients import GradientMagnitude, gradient_magnitude
from toughen.evaluation.landscape import LossSurface, WeaklyBounded, loss_surface, weakly_bounded
from toughen.evaluation.ledger import adversarial_examples
from toughen.evaluation.result import Evaluation
from toughen.evaluation.stages import UNBOUNDED, Aside
from toughen.evaluation.suites import SUITES
from toughen.evaluation.sweeps import EpsSweep, StepSweep, eps_sweep, step_sweep
from toughen.evaluation.transfer import Transfer, transfer
from toughen.evaluation.verify import Unsound

__all__ = [
    "SUITES",
    "UNBOUNDED",
    "Aside",
    "Audit",
    "Checkup",
    "CorruptionResult",
    "EpsSweep",
    "Evaluation",
    "Finding",
    "GradientMagnitude",
    "LossSurface",
    "MeanCorruptionError",
    "StepSweep",
    "Transfer",
    "Unsound",
    "WeaklyBounded",
    "adversarial_examples",
    "audit",
    "check",
    "corruption_accuracy",
    "eps_sweep",
    "evaluate",
    "gradient_magnitude",
    "loss_surface",
    "mean_corruption_error",
    "step_sweep",
    "transfer",
    "weakly_bounded",
]
