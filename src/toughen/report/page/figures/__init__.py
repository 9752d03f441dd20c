"""The drawings of a page: pure functions from numbers to a figure with its text and its data."""
