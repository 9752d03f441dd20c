"""Every attack by name. A new one is its own file and one line here."""

from toughen.attacks.adam_pgd import adam_pgd
from toughen.attacks.apgd import apgd, apgd_targeted
from toughen.attacks.carlini_wagner import carlini_wagner, carlini_wagner_linf
from toughen.attacks.contract import Attack
from toughen.attacks.deepfool import deepfool
from toughen.attacks.diversified import diversified_pgd
from toughen.attacks.fab import fab
from toughen.attacks.multi_targeted import multi_targeted
from toughen.attacks.neighbours import neighbour_pgd
from toughen.attacks.ni_fgsm import ni_fgsm
from toughen.attacks.pgd import bim, fgsm, mi_fgsm, pgd, r_fgsm, rs_fgsm
from toughen.attacks.spsa import spsa
from toughen.attacks.square import square
from toughen.attacks.targeted import targeted_pgd

ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "r_fgsm": r_fgsm,
    "rs_fgsm": rs_fgsm,
    "bim": bim,
    "mi_fgsm": mi_fgsm,
    "ni_fgsm": ni_fgsm,
    "pgd": pgd,
    "adam_pgd": adam_pgd,
    "targeted_pgd": targeted_pgd,
    "multi_targeted": multi_targeted,
    "diversified_pgd": diversified_pgd,
    "neighbour_pgd": neighbour_pgd,
    "apgd": apgd,
    "apgd_targeted": apgd_targeted,
    "fab": fab,
    "deepfool": deepfool,
    "carlini_wagner": carlini_wagner,
    "carlini_wagner_linf": carlini_wagner_linf,
    "square": square,
    "spsa": spsa,
}
