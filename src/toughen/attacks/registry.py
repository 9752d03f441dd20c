"""Every attack by name. A new one is its own file and one line here."""

from toughen.attacks.ascent import bim, fgsm, pgd, r_fgsm
from toughen.attacks.contract import Attack

ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "r_fgsm": r_fgsm,
    "bim": bim,
    "pgd": pgd,
}
