"""Recipes: everything about a run, as one validated object and as text."""

from toughen.recipes.schema import Recipe
from toughen.recipes.text import RecipeError, differences, dump, load, shipped

__all__ = ["Recipe", "RecipeError", "differences", "dump", "load", "shipped"]
