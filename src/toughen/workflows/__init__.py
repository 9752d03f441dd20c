"""What the verbs do, for Python and the command line alike: open what a text names, and run it into a folder.

    from toughen import workflows

    opened = workflows.open("runs/free")
    found, folder = workflows.evaluate("runs/free", EvaluationSettings("autoattack", limit=1000))

Papers go by short names here too (Free, Limits, IAAT, Bilateral); docs/methods/README.md cites them.
"""

from toughen.workflows.analyse import Analysed, analyse
from toughen.workflows.corruptions import measure_corruptions
from toughen.workflows.dry_run import dry_run
from toughen.workflows.evaluate import EvaluationSettings, evaluate
from toughen.workflows.label import label
from toughen.workflows.model_sources import ModelSource, OpenedModel, open
from toughen.workflows.run_folder import OpenedRun, open_run

__all__ = [
    "Analysed",
    "EvaluationSettings",
    "ModelSource",
    "OpenedModel",
    "OpenedRun",
    "analyse",
    "dry_run",
    "evaluate",
    "label",
    "measure_corruptions",
    "open",
    "open_run",
]
