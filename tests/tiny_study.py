"""A study of two rows on 60 of the embedded digits, that trains in a second."""

from pathlib import Path

RECIPE = """
name: tiny-{name}
data: {{source: mnist5k, limit: 60, validation: 20}}
model: {{name: small_cnn, width: 2}}
method: {method}
threat: linf:0.1
batch_size: 16
steps: 8
selection: {{suite: pgd-1, every: 8}}
"""

STUDY = """
title: Tiny
base: {folder}/natural.yaml
columns:
  clean: {{what: clean}}
  pgd-2: pgd-2
  minutes: {{what: minutes}}
rows:
  natural: {{label: Natural}}
  free: {{recipe: {folder}/free.yaml}}
scales: {{toy: {{twins: false, set: {{seed: 0}}, limit: 12, suite: null}}}}
"""


def write_tiny_study(folder: Path) -> Path:
    """Write the study and its recipes into a folder; the study's file."""
    for name, method in (("natural", "natural"), ("free", "{name: free, replays: 2}")):
        (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, method=method))
    path = folder / "tiny.yaml"
    path.write_text(STUDY.format(folder=folder))
    return path
