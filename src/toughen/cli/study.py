"""`toughen study ...`: whole tables as one command.

toughen study list
toughen study run free-table-1 --scale small --jobs 2 cifar10=path/to/cifar10
toughen study table runs/studies/free-table-1-small
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toughen.cli.errors import console, plain_errors, show_warnings_briefly
from toughen.errors import Command

if TYPE_CHECKING:
    from toughen.studies.folder import StudyFolder

app = typer.Typer(no_args_is_help=True, help="Whole tables: run, watch and print studies.", rich_markup_mode=None)

UNMEASURED = 1
"""Exit code where a row could not be measured, unlike 2, which is for what cannot be begun."""

Folder = Annotated[Path, typer.Argument(help="The folder of a study that was run.")]


@app.command(name="list")
def list_() -> None:
    """List the studies that come with the package."""
    with plain_errors():
        from toughen.studies.text import load, shipped

        for name in shipped():
            study = load(name)
            print(f"{name}: {study.title} ({len(study.all_rows())} rows)")


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A shipped name (toughen study list) or a YAML file.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="key=value for every recipe; cifar10=FOLDER says where that data set is.")
    ] = None,
    scale: Annotated[str, typer.Option(help="toy (seconds), small (minutes) or paper.")] = "small",
    jobs: Annotated[int, typer.Option(min=1, help="Workers at a time.")] = 1,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only this part of the trainings, like 2/8.")] = "1/1",
    out: Annotated[Path | None, typer.Option(help="The folder; by default runs/studies/NAME-SCALE.")] = None,
    executor: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    set_: Annotated[
        list[str] | None, typer.Option("--executor-set", help="key=value for Slurm or Ray, like address=auto.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Measure the best (by validation) or last weights, whatever the study says.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to do, and what it costs.")
    ] = False,
) -> None:
    """Train and measure every row of a table; killed, the same command goes on."""
    with plain_errors(), show_warnings_briefly():
        from toughen.report import render
        from toughen.report.tables.study import describe_study
        from toughen.settings import known
        from toughen.studies import executors
        from toughen.studies.cost import cost_lines
        from toughen.studies.create import create_folder
        from toughen.studies.results import collect
        from toughen.studies.status import showing_status
        from toughen.studies.text import load

        known(executor, ("local", "slurm", "ray"), "executor")
        part = parse_shard(shard)
        if executor == "local" and set_:
            raise ValueError("--executor-set is for --executor slurm or ray; leave it out")
        if executor != "local" and shard != "1/1":
            raise ValueError(f"--shard is for workers of this machine; leave it out with --executor {executor}")
        name = Path(study).stem
        out = out or Path("runs/studies") / f"{name}-{scale}"
        asked = {"name": name, "checkpoint": checkpoint, "dry_run": dry_run}
        folder = create_folder(load(study), scale, out, changes or (), **asked)
        if retry:
            for task in folder.clear_failures(dry_run=dry_run):
                print(f"again: {task}")
        for line in cost_lines(folder, probe=not dry_run):
            print(line, flush=True)
        if dry_run:
            from toughen.studies.cost import waiting
            from toughen.workflows.dry_run import try_trainings

            try_trainings(waiting(folder), note=print)
            return
        given = {key: value for key, _, value in (item.partition("=") for item in set_ or ())}
        if executor == "slurm":
            print("submitted: " + ", ".join(executors.run_on_slurm(folder, jobs=jobs, parameters=given)))
            print(f"next: {Command('study', 'status', folder.path)}")
            return
        with showing_status(folder, console()) as watch:
            if executor == "ray":
                executors.run_on_ray(folder, jobs=jobs, address=given.get("address"), watch=watch)
            else:
                executors.run_here(folder, jobs=jobs, shard=part, watch=watch)
        console().print(render(describe_study(collect(folder))))
        print(f"study: {folder.path}")
        end_unmeasured(folder)


@app.command()
def work(folder: Folder, shard: Annotated[str, typer.Option(metavar="I/N")] = "1/1") -> None:
    """Take tasks of a study until none is left; `run` starts these, and so may any scheduler."""
    with plain_errors(), show_warnings_briefly():
        from toughen.studies.folder import StudyFolder
        from toughen.studies.worker import work as do

        do(folder, shard=parse_shard(shard), note=lambda text: print(text, flush=True))
        end_unmeasured(StudyFolder(folder))


@app.command()
def status(folder: Folder) -> None:
    """Say how far a study is."""
    with plain_errors():
        from toughen.studies.folder import StudyFolder
        from toughen.studies.status import status_table

        console().print(status_table(found := StudyFolder(folder)))
        end_unmeasured(found)


@app.command()
def table(
    folder: Folder,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV, a line for each figure.")] = False,
) -> None:
    """Print the table of a study, however far it is, with the published numbers."""
    with plain_errors():
        from toughen.report import render
        from toughen.report.tables.study import describe_study, study_csv
        from toughen.studies.folder import StudyFolder
        from toughen.studies.results import collect

        found = collect(begun := StudyFolder(folder))
        if csv:
            sys.stdout.write(study_csv(found))
        else:
            console().print(render(describe_study(found)))
        end_unmeasured(begun)


def end_unmeasured(folder: "StudyFolder") -> None:
    """End with exit code `UNMEASURED` where a row could not be measured; the table has said which, and why."""
    if any(folder.state(name)[0] in ("failed", "faulty") for name in folder.rows):
        sys.stdout.flush()
        raise typer.Exit(UNMEASURED)


def parse_shard(text: str) -> tuple[int, int]:
    """(I - 1, N) of `I/N`.

    Raises:
        ValueError: it is not of that form, or I is not among 1 to N.
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"--shard is {text!r}; write I/N with I from 1 to N, like 2/8")
    return int(part) - 1, int(parts)
