"""Attacks: pure functions (model, x, y, *, threat, ...) -> x_adv.

docs/methods/README.md has a page for each family: its equations, settings, deviations and traps. There stands too which
papers are called Free, Limits, IAAT and Bilateral.
"""

from toughen.attacks.adam_pgd import adam_pgd
from toughen.attacks.apgd import apgd, apgd_targeted
from toughen.attacks.ascent import ascend
from toughen.attacks.carlini_wagner import carlini_wagner, carlini_wagner_linf
from toughen.attacks.contract import attack, minimal_norm
from toughen.attacks.deepfool import deepfool
from toughen.attacks.diversified import diversified_pgd
from toughen.attacks.fab import fab
from toughen.attacks.multi_targeted import multi_targeted
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
    "mi_fgsm",
    "minimal_norm",
    "multi_targeted",
    "ni_fgsm",
    "pgd",
    "r_fgsm",
    "rs_fgsm",
    "spsa",
    "square",
    "targeted_pgd",
]
