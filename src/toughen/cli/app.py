"""The command line: a thin skin over the library.

    toughen demo
    toughen train mnist-free threat=linf:0.1 --out runs/mine
    toughen evaluate runs/mine --suite pgd-40
    toughen list methods

Exit codes: 0 done; 1 a bug; 2 something the user can mend, said in one sentence; 3 `check` found something wrong with
the model; 75 stopped, and the same command goes on; 76 the run folder is in use; 141 nobody reads the output any more.
Everything heavy is imported by the command that needs it.
"""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from toughen import __version__
from toughen.cli import arguments
from toughen.cli.errors import console, plain_errors, show_warnings_briefly
from toughen.cli.study import app as study
from toughen.errors import Command

app = typer.Typer(
    cls=arguments.Arguments,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train image classifiers that withstand adversarial examples, and measure robustness one can trust.",
)


app.add_typer(study, name="study")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"toughen {__version__}")
        raise typer.Exit()


@app.callback()
def toughen(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """What stands before every command; Typer's own help is that of the application."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name (toughen list recipes) or a YAML file.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, like method.replays=4 seed=1.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; the same command in the same folder goes on.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try all that training might refuse, print recipe and cost, and stop.")
    ] = False,
) -> None:
    """Train a classifier."""
    with plain_errors():
        from toughen import recipes, report
        from toughen.parallel.ranks import is_first
        from toughen.progress import open_display
        from toughen.training import train as run

        loaded = recipes.load(recipe, changes or ())
        folder = out or Path("runs") / loaded.name
        if dry_run:
            from toughen.workflows import dry_run as try_out

            notes: list[str] = []
            with show_warnings_briefly():
                loaded = try_out(loaded, folder, note=notes.append)
            print(recipes.dump(loaded) + "\n".join([report.predicted_cost(loaded), *(f"# {note}" for note in notes)]))
            return
        if is_first():
            print(report.predicted_cost(loaded).replace("# ", ""), flush=True)
        with show_warnings_briefly():
            summary = run(loaded, folder, display=open_display(console()))
        if is_first():
            console().print(report.render(report.describe_training(summary)))
            print(f"run folder: {folder}\nnext: {Command('evaluate', folder, suite='pgd-20')}")


@app.command()
def evaluate(
    run_or_model: arguments.Model,
    suite: Annotated[
        str, typer.Option(help="Attacks, like autoattack (toughen list suites), or FILE.py:DICT; or corruptions.")
    ] = "pgd-20",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N test images; N spread evenly if they lie by class.")
    ] = None,
    data: arguments.Data = None,
    size: arguments.Size = None,
    mean: arguments.Mean = None,
    std: arguments.Std = None,
    checkpoint: arguments.Checkpoint = "best",
    weights: arguments.Weights = None,
    key: arguments.Key = None,
    threat: arguments.Ball = None,
    batch_size: arguments.BatchSize = 250,
    seed: arguments.Seed = 0,
    step_size: Annotated[str | None, typer.Option(help="Of the suite's PGD attacks, like 1/255.")] = None,
    independent: Annotated[bool, typer.Option(help="Every attack on every image, not on what is left.")] = False,
    keep: Annotated[str | None, typer.Option(help="Keep adversarial examples: float32 or uint8.")] = None,
    published: Annotated[
        Path | None, typer.Option(help="Suite corruptions: folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Suite corruptions: of the mCE, alexnet or another result.json.")
    ] = None,
    out: arguments.Out = None,
) -> None:
    """Measure clean and robust accuracy on the test split; killed, the same command goes on."""
    with plain_errors():
        from toughen import report, workflows
        from toughen.parallel.ranks import is_first
        from toughen.progress import watching
        from toughen.report.tables.corruptions import describe_corruptions
        from toughen.settings import known, parse_number

        chosen = {"data": data, "size": size, "checkpoint": checkpoint, "weights": weights, "key": key}
        source = arguments.source_of(run_or_model, mean, std, **chosen)
        attacked = {"--threat": threat, "--step-size": step_size, "--independent": independent, "--keep": keep}
        named = ", ".join(option for option, value in attacked.items() if value)
        corrupted = suite == "corruptions"
        if corrupted and named:
            raise ValueError(f"suite {suite} runs no attack, so {named} has no meaning there; leave it out")
        if not corrupted and (published is not None or baseline is not None):
            raise ValueError("--published and --baseline go with --suite corruptions alone; leave them out")
        if keep is not None:
            known(keep, ("float32", "uint8"), "way to keep examples")
        shared: Any = {"limit": limit, "batch_size": batch_size, "seed": seed}
        with show_warnings_briefly(), watching(console()) as watch:
            if corrupted:
                measured, error, folder = workflows.measure_corruptions(
                    source, **shared, published=published, baseline=baseline, out=out, progress=watch
                )
                described = describe_corruptions(measured.summary(), vars(error))
            else:
                step = parse_number(step_size) if step_size is not None else None
                settings = workflows.EvaluationSettings(
                    suite, **shared, threat=threat, step_size=step, independent=independent, keep=cast("Any", keep)
                )
                note = print if is_first() else lambda text: None
                found, folder = workflows.evaluate(source, settings, out=out, progress=watch, note=note)
                described = report.describe_evaluation(found.summary())
        if is_first():
            console().print(report.render(described))
            print(f"results: {folder / 'result.json'}\nper example: {folder / 'examples.parquet'}")


@app.command()
def analyse(
    run_or_model: arguments.Model,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Test images of the sweeps and gradients; 200 by default.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="eps-sweep, step-sweep, gradients, surface, turns-into, pictures, radii; several by commas."),
    ] = None,
    images: arguments.Images = None,
    directions: arguments.Directions = None,
    data: arguments.Data = None,
    size: arguments.Size = None,
    mean: arguments.Mean = None,
    std: arguments.Std = None,
    checkpoint: arguments.Checkpoint = "best",
    weights: arguments.Weights = None,
    key: arguments.Key = None,
    threat: arguments.Ball = None,
    batch_size: arguments.BatchSize = 250,
    seed: arguments.Seed = 0,
    out: arguments.Out = None,
) -> None:
    """Compute what a report draws: sweeps, gradients, surfaces, pictures; killed, the same command goes on."""
    with plain_errors():
        from toughen import workflows
        from toughen.progress import counting

        chosen = {"data": data, "size": size, "checkpoint": checkpoint, "weights": weights, "key": key}
        source = arguments.source_of(run_or_model, mean, std, **chosen)
        given: Any = {
            "limit": limit,
            "only": arguments.parts_of(only),
            "images": arguments.positions_of(images),
            "directions": arguments.parts_of(directions) or None,
            "threat": threat,
            "batch_size": batch_size,
            "seed": seed,
        }
        with show_warnings_briefly(), counting(console()) as watch:
            found = workflows.analyse(source, **given, out=out, progress=watch, note=print)
        for name in (*found.kept, *found.made):
            print(f"{found.folder / name}{' (was there)' if name in found.kept else ''}")
        if found.warning:
            print(f"note: {found.warning}")


@app.command()
def check(
    run_or_model: arguments.Model,
    data: arguments.Data = None,
    size: arguments.Size = None,
    limit: Annotated[int, typer.Option(min=1, help="How many test images are looked at.")] = 128,
    mean: arguments.Mean = None,
    std: arguments.Std = None,
    key: arguments.Key = None,
) -> None:
    """Find what is wrong with how a model is fed, within a minute; exit code 3 if anything is."""
    with plain_errors():
        from toughen import workflows
        from toughen.evaluation.audit.model_check import check as look
        from toughen.evaluation.audit.model_check import choose_images
        from toughen.report import render
        from toughen.report.tables.model_check import describe_model_check

        with show_warnings_briefly():
            opened = workflows.open(arguments.source_of(run_or_model, mean, std, data=data, size=size, key=key))
            for said in filter(None, (opened.said, opened.used)):
                print(said)
            some = opened.test.take(choose_images(len(opened.test), limit))
            found = look(opened.model, some.images, some.labels, classes=opened.classes or None, limit=limit)
        console().print(render(describe_model_check(found.summary())))
        if not found.fine:
            raise typer.Exit(3)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier export there is replaced.")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="safetensors (always), onnx, robustbench; several with commas."),
    ] = None,
    checkpoint: arguments.Checkpoint = "best",
    weights: arguments.Weights = None,
    licence: Annotated[str | None, typer.Option(help="For the model card, like apache-2.0.")] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload to the Hugging Face Hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Pushed for everybody to see; private without.")] = False,
) -> None:
    """Write a trained model as a folder that stands alone, with a model card."""
    with plain_errors(), show_warnings_briefly():
        from toughen.export import export as write
        from toughen.export import hub

        if not run.exists():
            raise ValueError(f"there is no folder {run}; give a run folder, the --out of a toughen train")
        if public and push is None:
            raise ValueError("--public goes with --push; give --push OWNER/NAME")
        if push is not None:
            hub.check_repository(push)
        wanted = arguments.parts_of(formats or ["safetensors"])
        made = write(run, out, checkpoint=checkpoint, weights=weights, formats=wanted, licence=licence)
        for name, size in made.files.items():
            print(f"{made.folder / name}: {size:,} bytes")
        for note in made.notes:
            print(f"note: {note}")
        if push is not None:
            print(f"pushed: {hub.push(out, push, public=public)} ({'public' if public else 'private'})")
        print(f"next: {Command('evaluate', out, data=made.data)}")


@app.command()
def label(
    pool: Annotated[str, typer.Argument(help="The images to choose from: a source, like a folder or a file.")],
    scorer: arguments.Scorer,
    against: Annotated[str, typer.Option(help="Data whose test images must not be in the set; gives the classes.")],
    count: Annotated[list[int], typer.Option(help="Images to choose; several counts give nested sets.")],
    out: Annotated[Path, typer.Option(help="Folder of the set; the same command goes on there.")],
    threshold: Annotated[str, typer.Option(help="L2 distance that makes a copy, pixels in [0, 1].")] = "2000/255",
    labeller: Annotated[str | None, typer.Option(help="A second classifier that labels what is chosen.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write soft labels too.")] = False,
    foreign: Annotated[bool, typer.Option("--foreign", help="The scorer's last output is for other images.")] = False,
    size: arguments.Size = None,
    key: arguments.Key = None,
    labeller_key: arguments.Key = None,
    batch_size: arguments.BatchSize = 256,
) -> None:
    """Build an extra, pseudo-labelled training set from a pool of images; killed, the same command goes on."""
    with plain_errors():
        from toughen.progress import counting
        from toughen.report import render
        from toughen.report.tables.labelling import describe_labelling
        from toughen.settings import parse_number
        from toughen.workflows import ModelSource
        from toughen.workflows import label as build

        if labeller_key is not None and labeller is None:
            raise ValueError("--labeller-key goes with --labeller; leave it out")
        with show_warnings_briefly(), counting(console()) as watch:
            manifest = build(
                pool,
                ModelSource(scorer, size=size, key=key),
                against=against,
                counts=count,
                out=out,
                threshold=parse_number(threshold),
                labeller=labeller and ModelSource(labeller, key=labeller_key),
                soft=probabilities,
                foreign=foreign,
                batch_size=batch_size,
                progress=watch,
                note=print,
            )
        console().print(render(describe_labelling(manifest)))
        print(f"the set: {out}\nwhat was done: {out / 'manifest.json'}")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_OR_STUDY...", help="Run folders and studies.")],
    out: Annotated[Path | None, typer.Option(help="The page to write; an earlier one is replaced.")] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write every figure as SVG or PNG, and its data as CSV.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Print the same tables here.")] = False,
) -> None:
    """Make one HTML page of runs and studies, which needs no network and no other file."""
    with plain_errors():
        from toughen.report.page.page import build_entries, write_figures, write_page
        from toughen.report.terminal.renderer import render_entries
        from toughen.studies.folder import STUDY, StudyFolder
        from toughen.studies.results import collect

        if out is None and figures is None and not plain:
            raise ValueError("there is nothing to write; give --out PAGE.html, --figures FOLDER or --plain")
        studies = [folder for folder in folders if (folder / STUDY).is_file()]
        runs = [folder for folder in folders if folder not in studies]
        entries = build_entries(runs, [(folder, collect(StudyFolder(folder))) for folder in studies])
        if plain:
            for shown in render_entries(entries):
                console().print(shown)
        if figures is not None:
            print(f"{len(write_figures(figures, entries))} files in {figures}")
        if out is not None:
            print(f"page: {out} ({write_page(out, entries):,} bytes)")


@app.command(name="import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="CIFAR's folder in its Python layout, or a pickle of pseudo-labelled images.")
    ],
    out: Annotated[Path, typer.Option(help="The .npz file to write; it must not exist.")],
) -> None:
    """Turn pickles of images into an .npz file, by an unpickler that knows arrays alone."""
    with plain_errors():
        from toughen.data.sources.cifar_pickle import import_folder
        from toughen.data.sources.pseudo_labels import import_pickle

        pseudo = path.is_file()
        counts = import_pickle(path, out) if pseudo else import_folder(path, out)
        print(", ".join(f"{count} {part} images" for part, count in counts.items()))
        print(f"next: {Command('train', 'RECIPE', f'data.extra={out}' if pseudo else f'data={out}')}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the demo's runs go.")] = Path("runs/demo"),
) -> None:
    """Train on real digits with and without an adversary, and compare (about a minute on two CPU cores)."""
    with plain_errors():
        from toughen.cli.demo import demo as show

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
        from toughen.cli.listing import catalogue

        for line in catalogue(what):
            print(line)


def main() -> None:
    """Entry point of the command."""
    app()
