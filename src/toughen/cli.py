"""The command line: a thin skin over the library.

    toughen demo
    toughen train mnist-free threat=linf:0.1 --out runs/mine
    toughen evaluate runs/mine --suite pgd-40
    toughen list methods

Exit codes: 0 done; 1 a bug; 2 something the user can mend, said in one sentence; 76 the run folder is in use.
Everything heavy is imported by the command that needs it.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from toughen.store import Damaged, Locked

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train image classifiers that withstand adversarial examples, and measure robustness one can trust.",
)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user can mend becomes one sentence and an exit code, never a traceback."""
    from toughen.evaluation import Unsound
    from toughen.training.monitors import NonFinite

    try:
        yield
    except Locked as error:
        _fail(str(error), 76)
    except (ValueError, NonFinite, Damaged, Unsound) as error:
        _fail(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; check the path, its permissions and the space left", 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from what is saved", 130)


def _fail(message: str, code: int) -> None:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    raise typer.Exit(code)


def console() -> Console:
    """Standard output, as wide as a log line needs where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name (toughen list recipes) or a YAML file.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, like method.replays=4 seed=1.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; the same command in the same folder goes on.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the whole recipe and its cost, and stop.")] = False,
) -> None:
    """Train a classifier."""
    with plain_errors():
        from toughen import recipes, report
        from toughen.display import terminal
        from toughen.training import train as run

        loaded = recipes.load(recipe, changes or ())
        if dry_run:
            print(recipes.dump(loaded) + report.predicted_cost(loaded))
            return
        folder = out or Path("runs") / loaded.name
        with show_warnings_briefly():
            summary = run(loaded, folder, display=terminal(console()))
        if int(os.environ.get("RANK", "0")) == 0:
            console().print(report.training_table(summary))
            print(f"run folder: {folder}\nnext: toughen evaluate {folder} --suite pgd-20")


@app.command()
def evaluate(
    run_or_model: Annotated[
        str,
        typer.Argument(help="A run folder, or FILE.py:FUNCTION that returns a module (images in [0, 1] to logits)."),
    ],
    suite: Annotated[
        str, typer.Option(help="Attacks, like autoattack or pgd-20-r5 (toughen list suites), or FILE.py:DICT.")
    ] = "pgd-20",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N test images.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set of a model of your own.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Of a run: best (by validation) or last.")] = "best",
    weights: Annotated[str | None, typer.Option(help="Of a run: weights, or an average like average-0.995.")] = None,
    threat: Annotated[str | None, typer.Option(help="Another threat model than the run's, like linf:4/255.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 250,
    seed: Annotated[int, typer.Option(min=0, help="Of the attacks.")] = 0,
    step_size: Annotated[str | None, typer.Option(help="Of the suite's PGD attacks, like 1/255.")] = None,
    independent: Annotated[bool, typer.Option(help="Every attack on every image, not on what is left.")] = False,
    keep: Annotated[str | None, typer.Option(help="Keep adversarial examples: float32 or uint8.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; the same command goes on there.")] = None,
) -> None:
    """Measure clean and robust accuracy on the test split; killed, the same command goes on."""
    with plain_errors():
        from toughen import report
        from toughen.display import watching
        from toughen.naming import known, parse_number
        from toughen.training.runs import evaluate_run

        if keep is not None:
            known(keep, ("float32", "uint8"), "way to keep examples")
        with show_warnings_briefly(), watching(console()) as watch:
            found, folder = evaluate_run(
                run_or_model,
                suite=suite,
                limit=limit,
                data=data,
                checkpoint=checkpoint,
                weights=weights,
                threat=threat,
                batch_size=batch_size,
                seed=seed,
                step_size=parse_number(step_size) if step_size is not None else None,
                independent=independent,
                keep=keep,  # pyright: ignore[reportArgumentType]
                out=out,
                progress=watch,
            )
        if int(os.environ.get("RANK", "0")) == 0:
            console().print(report.evaluation_table(found.summary()))
            print(f"results: {folder / 'result.json'}\nper example: {folder / 'examples.parquet'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the demo's runs go.")] = Path("runs/demo"),
) -> None:
    """Train on real digits with and without an adversary, and compare (about a minute on two CPU cores)."""
    with plain_errors():
        from toughen.demo import demo as show

        with show_warnings_briefly():
            show(out, console())


@app.command(name="list")
def list_(
    what: Annotated[
        str, typer.Argument(help="recipes, methods, attacks, models, data or suites; all by default.")
    ] = "",
) -> None:
    """List what there is."""
    with plain_errors():
        from toughen.catalogue import catalogue

        for line in catalogue(what):
            print(line)


@contextmanager
def show_warnings_briefly() -> Iterator[None]:
    """Libraries' warnings about themselves are no news to a user; ours are printed by the display."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Entry point of the command."""
    app()
