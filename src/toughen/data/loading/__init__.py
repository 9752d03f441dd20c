"""Training batches: which examples, from where, in which view."""
