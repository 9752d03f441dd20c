from pathlib import Path

import pytest

RECIPE = """
name: tiny-{name}
data: {{source: {source}, validation: 20}}
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


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    """A study of two rows on the embedded digits, 60 of them, that trains in a second."""
    for name, method in (("natural", "natural"), ("free", "{name: free, replays: 2}")):
        text = RECIPE.format(name=name, source="mnist5k, limit: 60", method=method)
        (tmp_path / f"{name}.yaml").write_text(text)
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.format(folder=tmp_path))
    return path
