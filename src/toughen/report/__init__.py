"""Reports: pure functions from what runs wrote to tables. Imports no torch."""

from toughen.report.terminal.tables import comparison_table, evaluation_table, predicted_cost, training_table

__all__ = ["comparison_table", "evaluation_table", "predicted_cost", "training_table"]
