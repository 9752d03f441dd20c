"""Reports: pure functions from what runs wrote to tables. Imports no torch.

What a table says is described once (`report.tables`, `report.page`) in blocks (`report.blocks`); the page, the terminal
(`render`) and the CSV files show the same ones.
"""

from toughen.report.tables.evaluation import comparison_table, describe_evaluation
from toughen.report.tables.training import describe_training, predicted_cost
from toughen.report.terminal.renderer import render

__all__ = ["comparison_table", "describe_evaluation", "describe_training", "predicted_cost", "render"]
