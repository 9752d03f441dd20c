"""Evaluation: a named suite of attacks, run worst-case over fixed examples, every adversarial example re-verified.

Example:
    evaluation = evaluate(model, x, y, threat=Linf(8 / 255), suite="autoattack")
    evaluation.clean_accuracy, evaluation.robust_accuracy, evaluation.unreliable
    evaluation.write(Path("runs/mine/evaluation"))

Whose protocol each suite is: docs/methods/evaluation.md. Papers are called Free, Limits, IAAT and Bilateral as in
docs/methods/README.md, Papers.
"""

from toughen.evaluation.analyses.gradients import GradientMagnitude, gradient_magnitude
from toughen.evaluation.analyses.landscape import LossSurface, WeaklyBounded, loss_surface, weakly_bounded
from toughen.evaluation.analyses.sweeps import EpsSweep, StepSweep, eps_sweep, step_sweep
from toughen.evaluation.analyses.transfer import Transfer, transfer
from toughen.evaluation.audit.audit import audit
from toughen.evaluation.audit.findings import Audit, Finding
from toughen.evaluation.audit.model_check import ModelCheck, check
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import CorruptionResult, MeanCorruptionError, mean_corruption_error
from toughen.evaluation.evaluate import evaluate
from toughen.evaluation.plan import UNBOUNDED, SideAttack
from toughen.evaluation.referee import Unsound
from toughen.evaluation.result import Evaluation
from toughen.evaluation.resume import adversarial_examples
from toughen.evaluation.suites import SUITES

__all__ = [
    "SUITES",
    "UNBOUNDED",
    "Audit",
    "CorruptionResult",
    "EpsSweep",
    "Evaluation",
    "Finding",
    "GradientMagnitude",
    "LossSurface",
    "MeanCorruptionError",
    "ModelCheck",
    "SideAttack",
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
