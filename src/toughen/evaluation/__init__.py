"""Evaluation: a named suite of attacks, run worst-case over fixed examples, every adversarial example re-verified.

Example:
    evaluation = evaluate(model, x, y, threat=Linf(8 / 255), suite="pgd-20")
    evaluation.clean_accuracy, evaluation.robust_accuracy
    evaluation.write(Path("runs/mine/evaluation"))
"""

from toughen.evaluation.evaluate import evaluate
from toughen.evaluation.result import Evaluation
from toughen.evaluation.suites import SUITES
from toughen.evaluation.verify import Unsound

__all__ = ["SUITES", "Evaluation", "Unsound", "evaluate"]
