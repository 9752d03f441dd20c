"""Can a robust accuracy be believed? The audit of an evaluation, and the check of a model."""
