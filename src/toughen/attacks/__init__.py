"""Attacks: pure functions (model, x, y, *, threat, ...) -> x_adv, each in `ATTACKS` under the name it has here.

    x_adv = pgd(model, x, y, threat=Linf(8 / 255), steps=20)              # called by hand: arguments are checked
    spec = AttackSpec(name="pgd", steps=20)                               # as recipes and suites write it

What an attack of your own is made of: `@attack` above it checks what it is given, `@minimal_norm` says that it looks
for the nearest example wherever it lies, `@for_norm` that it knows one norm alone; `from_image` and `from_starts` run
the one loop, `ascend`, with a `Rule` that makes steps of gradients. The rest is on lower floors: `modes.attacking`,
`models.batched`, `noise`, `threat`, `losses`, and the types of settings in `settings`. See docs/adding-an-attack.md,
and docs/methods/README.md, which has a page for each family and says which papers are called Free, Limits, IAAT and
Bilateral.
"""

from toughen.attacks.adam_pgd import adam_pgd
from toughen.attacks.apgd import apgd, apgd_targeted
from toughen.attacks.ascent import Rule, ascend, from_image, from_starts
from toughen.attacks.carlini_wagner import carlini_wagner, carlini_wagner_linf
from toughen.attacks.contract import attack, for_norm, minimal_norm
from toughen.attacks.deepfool import deepfool
from toughen.attacks.diversified import diversified_pgd
from toughen.attacks.fab import fab
from toughen.attacks.multi_targeted import multi_targeted
from toughen.attacks.neighbours import neighbour_pgd
from toughen.attacks.ni_fgsm import ni_fgsm
from toughen.attacks.pgd import bim, fgsm, mi_fgsm, pgd, r_fgsm, rs_fgsm
from toughen.attacks.registry import ATTACKS
from toughen.attacks.spec import AttackSpec
from toughen.attacks.spsa import spsa
from toughen.attacks.square import square
from toughen.attacks.targeted import targeted_pgd

__all__ = [
    "ATTACKS",
    "AttackSpec",
    "Rule",
    "adam_pgd",
    "apgd",
    "apgd_targeted",
    "ascend",
    "attack",
    "bim",
    "carlini_wagner",
    "carlini_wagner_linf",
    "deepfool",
    "diversified_pgd",
    "fab",
    "fgsm",
    "for_norm",
    "from_image",
    "from_starts",
    "mi_fgsm",
    "minimal_norm",
    "multi_targeted",
    "neighbour_pgd",
    "ni_fgsm",
    "pgd",
    "r_fgsm",
    "rs_fgsm",
    "spsa",
    "square",
    "targeted_pgd",
]
