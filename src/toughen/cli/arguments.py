"""What a command takes before it looks at it: text that can be written again.

app = typer.Typer(cls=Arguments)
"""

from typing import Any

import typer
from typer.core import TyperGroup


class Arguments(TyperGroup):
    """Commands whose arguments are UTF-8: results name paths and are UTF-8 too, as are the libraries that open them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse any other argument at once, before work is done that could not be kept."""
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise typer.BadParameter(f"{argument!a} is not UTF-8; rename it, or go there and give '.'") from None
        return super().parse_args(ctx, args)
