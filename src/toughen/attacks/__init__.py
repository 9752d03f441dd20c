"""Attacks: pure functions (model, x, y, *, threat, ...) -> x_adv."""

from toughen.attacks.ascent import ascend, bim, fgsm, pgd, r_fgsm
from toughen.attacks.contract import attack
from toughen.attacks.registry import ATTACKS
from toughen.attacks.spec import AttackSpec

__all__ = ["ATTACKS", "AttackSpec", "ascend", "attack", "bim", "fgsm", "pgd", "r_fgsm"]
