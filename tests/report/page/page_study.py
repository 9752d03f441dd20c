"""A study of five rows, of which one has a fault, and what its page is to say by the papers and by hand."""

N, STEPS = 30, 40

RECIPE = f"""
name: tiny
data: {{source: mnist5k, limit: 300, validation: 60}}
model: {{name: small_cnn, width: 4, norm: batch}}
threat: linf:0.1
batch_size: 32
steps: {STEPS}
overfitting_every: 0
optimizer: {{lr: 0.05, momentum: 0.9}}
selection: {{suite: pgd-1, every: 40}}
"""

STUDY = """
title: Tiny
base: {folder}/natural.yaml
columns:
  accuracy: {{what: clean, metric: clean}}
  pgd-5: {{suite: pgd-5, metric: PGD-20}}
  several: {{suite: quick, metric: AA+MT}}
  one-step: {{suite: bilateral, attack: fgsm}}
  shown: {{what: transfer, suite: pgd-2, transfer_from: natural}}
  corrupted: {{what: corruptions}}
  mce: {{what: mce}}
  slope: {{what: gradient_mean}}
  steepest: {{what: gradient_max}}
  minutes: {{what: minutes, metric: train_time}}
rows:
  natural:
    label: Natural
    columns: [accuracy, pgd-5, several, one-step, shown, slope, steepest, minutes]
    cells: {{paper: "001", table: Table 1, method: natural}}
  free:
    label: Free
    recipe: {folder}/free.yaml
    columns: [accuracy, pgd-5, several, shown, slope, steepest, minutes]
    seeds: [0, 1]
    cells: {{paper: "001", table: Table 1, method: Free, params: {{m: 2}}}}
  pgd:
    label: PGD-2
    columns: [accuracy, pgd-5, several, shown, corrupted, mce, slope, steepest, minutes]
    recipe: {folder}/pgd.yaml
    seeds: [0, 1]
    pick: best
    cells: {{paper: "002", table: Table 1, method: AT, params: {{batch: 128}}}}
  plain: {{label: No attack, columns: [minutes], set: {{seed: 0}}}}
  bad: {{label: Bad, set: {{method.nothing: 1}}}}
scales: {{paper: {{limit: {n}}}}}
"""

PRINTED = {
    ("natural", "accuracy"): ("95.01", None),
    ("natural", "pgd-5"): ("0.00", None),
    ("natural", "minutes"): ("780", None),
    ("free", "accuracy"): ("91.45", None),
    ("free", "pgd-5"): ("33.92", None),
    ("free", "minutes"): ("816", None),
    ("pgd", "accuracy"): ("84.85", "1.20"),
    ("pgd", "several"): ("50.80", "0.23"),
}
"""As the papers' tables have them: Shafahi et al. 2019, table 1; Gowal et al. 2020, table 1."""

PASSES = {"natural": (1, 1, 1.0), "free": (1, 1, 1.0), "pgd": (3, 3, 7 / 3), "plain": (1, 1, 1.0)}
"""Of one step: forwards, backwards, and natural steps: a third for each forward and for each gradient, of the image or
the weights. PGD-2 takes two of each for the attack, then a natural step; Free's step is a natural one."""

ATTACKED = {"pgd-5": "pgd-5", "several": "quick", "one-step": "bilateral_fgsm"}
"""Columns of robust accuracy, and what their evaluations are called."""

COLUMNS = ("accuracy", "pgd-5", "several", "one-step", "shown", "corrupted", "slope", "steepest", "minutes")
LACKS = {"natural": ("corrupted",), "free": ("corrupted", "one-step"), "pgd": ("one-step",)}
ABSENT = {**LACKS, "plain": COLUMNS[:-1], "bad": COLUMNS}
LABELS = {"natural": "Natural", "free": "Free", "pgd": "PGD-2", "plain": "No attack", "bad": "Bad"}
