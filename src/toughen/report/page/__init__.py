"""The HTML page of runs and studies."""
