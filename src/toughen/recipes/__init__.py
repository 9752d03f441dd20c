"""Recipes: everything about a run, as one validated object and as text.

Each shipped recipe is a YAML file in the folder of the paper whose figures it has:

    free, limits              Shafahi et al. 2019, training "for free"; Gowal et al. 2020, "Uncovering the limits"
    iaat, bilateral           Balaji et al. 2019, instance-adaptive training; Wang & Zhang 2019, bilateral training
    trades, mart, awp         Zhang et al. 2019; Wang et al. 2020; Wu et al. 2020
    rice, rst                 Rice et al. 2020, early stopping; Carmon et al. 2019, robust self-training
    wong, n_fgsm, gradalign   Wong et al. 2020; de Jorge et al. 2022; Andriushchenko & Flammarion 2020
    interpolated, xie         Lamb et al. 2019; Xie et al. 2019
    own                       of no paper: digits, fine-tuning, speed-runs

Beside each recipe stands its small twin, `NAME-small`, by the rule in `twins`.

Each line of a shipped recipe says where its value comes from. Four papers go by short names there: Free, Limits, IAAT
and Bilateral; docs/methods/README.md, Papers, cites them. A file's name (`config.py`) is one of the authors' code.
"""

from toughen.recipes.schema import Recipe
from toughen.recipes.text import RecipeError, differences, dump, load, shipped, twinned

__all__ = ["Recipe", "RecipeError", "differences", "dump", "load", "shipped", "twinned"]
