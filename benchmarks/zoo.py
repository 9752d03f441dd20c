"""AutoAttack, `adaptive` and `exhaustive` on a zoo of small networks, and on networks whose exact answer is known.

    make bench-zoo CIFAR10=FOLDER
    python benchmarks/zoo.py --data FOLDER                           # everything; writes results/zoo.md
    python benchmarks/zoo.py --data FOLDER --members digits-pgd      # these alone, printed

Networks, evaluations and exact answers are kept in a cache outside the repository: killed, the same command goes on.
`exhaustive` is for few images, and gets AutoAttack's survivors that came nearest to breaking, with what AutoAttack
broke as donors. `--long` gives as many of them ten times Square's queries, which takes longer than all the rest.
"""

import argparse
import datetime
import platform
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from toughen.attacks import AttackSpec
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.suites import find
from zoo_exact import PROBLEMS, SUITES, Verdicts, verdicts
from zoo_models import ZOO, Member

RESULT = Path(__file__).resolve().parent / "results" / "zoo.md"
N = 200
TENFOLD = AttackSpec(name="square", queries=50_000, stretch=False)


def measured(name: str, suite: str, cache: Path, data: str | None) -> Evaluation:
    """A suite on a member's first test images, done once."""
    member = ZOO[name]
    model, x, y = member.open(name, cache, data, N)
    settings = repr([find(suite, member.threat), str(member.threat)])
    folder = cache / "evaluations" / f"{name}-{suite}-{sha256(settings.encode()).hexdigest()[:12]}"
    return evaluate(model, x, y, threat=member.threat, suite=suite, folder=folder)


def broken(found: Evaluation) -> set[int]:
    """The examples that do not survive."""
    return set(found.outcomes.index[~found.outcomes.survived].tolist())


def nearest_survivors(full: Evaluation, most: int) -> list[int]:
    """Of the examples that an evaluation did not break, those that came nearest to it."""
    table = full.outcomes
    highest = dict.fromkeys(sorted(set(table.index.tolist()) - broken(full)), -np.inf)
    for row, margin in zip(table.index.tolist(), table.margin.tolist(), strict=True):
        if row in highest:
            highest[row] = max(highest[row], margin)
    return sorted(sorted(highest, key=lambda row: -highest[row])[:most])


def further(
    name: str,
    label: str,
    suite: str | dict[str, AttackSpec],
    ids: list[int],
    cache: Path,
    data: str | None,
    report: bool,
) -> set[int] | None:
    """What another suite breaks of some of a member's images; None where that is not measured yet, for a report."""
    member, rows = ZOO[name], torch.tensor(ids, dtype=torch.int64)
    model, x, y = member.open(name, cache, data, N)
    if not len(rows):
        return set()
    found = find(suite, member.threat) if isinstance(suite, str) else suite
    key = sha256(repr([found, ids, str(member.threat)]).encode()).hexdigest()[:12]
    folder = cache / "evaluations" / f"{name}-{label}-{key}"
    if report and not (folder / "result.json").exists():
        return None
    given = {"threat": member.threat, "suite": suite, "index": rows, "folder": folder, "audit": False}
    return broken(evaluate(model, x[rows], y[rows], **given))


@dataclass(frozen=True)
class Row:
    """A member's figures; `exhaustive` and `tenfold` of how many nearest survivors of AutoAttack it broke how many."""

    name: str
    full: Evaluation
    adaptive: Evaluation
    exhaustive: tuple[int, int] | None
    tenfold: tuple[int, int] | None

    @property
    def above(self) -> float:
        """By how many points of accuracy `adaptive` ends above AutoAttack."""
        return 100 * (self.adaptive.robust_accuracy - self.full.robust_accuracy)


def row_of(name: str, cache: Path, data: str | None, few: int, long: int, report: bool) -> Row:
    """Everything about one member."""
    full, adaptive = (measured(name, suite, cache, data) for suite in ("autoattack", "adaptive"))
    near, far = nearest_survivors(full, few), nearest_survivors(full, long)
    given = sorted(near + sorted(broken(full))) if near else []
    last = further(name, "exhaustive", "exhaustive", given, cache, data, report)
    tenfold = further(name, "tenfold", {"square": TENFOLD}, far, cache, data, report)
    return Row(
        name,
        full,
        adaptive,
        None if last is None else (len(last & set(near)), len(near)),
        None if tenfold is None else (len(tenfold), len(far)),
    )


def flags(found: Evaluation) -> str:
    """The codes of what makes it unreliable."""
    return ", ".join(one.code for one in found.audit.findings if one.severity != "note") if found.audit else ""


def making(member: Member) -> str:
    """How a network was made, in a few words."""
    layers = f"{member.layers} hidden layers" if member.layers else "max-pool" if member.pool else "strides"
    parts = [f"{member.classes} classes", layers, member.activation, "BatchNorm" if member.batchnorm else ""]
    parts += [f"{member.attack.name} at {member.train_eps:.3g}" if member.attack else "natural"]
    parts += ["smoothed" if member.smoothing else "", "distilled" if member.distilled else ""]
    return ", ".join(part for part in parts if part)


def zoo_table(rows: list[Row]) -> list[str]:
    """The table of the zoo, and the pooled figures."""
    lines = [
        "| model | made | ball | clean | AutoAttack | adaptive | above | exhaustive broke | Square x 10 broke | "
        "forwards fewer by | backwards fewer by | flags: AutoAttack | flags: adaptive |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    passes = np.zeros(4)
    for row in rows:
        member, full, adaptive = ZOO[row.name], row.full, row.adaptive
        taken = np.array([full.forwards, adaptive.forwards, full.backwards, adaptive.backwards])
        passes += taken
        lines.append(
            f"| {row.name}{' (held out)' if member.held_out else ''} | {making(member)} | {member.threat} | "
            f"{100 * full.clean_accuracy:.1f} | {100 * full.robust_accuracy:.1f} | "
            f"{100 * adaptive.robust_accuracy:.1f} | {row.above:+.1f} | {_of(row.exhaustive)} | {_of(row.tenfold)} | "
            f"{taken[0] / taken[1]:.1f} | {taken[2] / taken[3]:.2f} | {flags(full)} | {flags(adaptive)} |"
        )
    if len(rows):
        lines.append(
            f"| pooled | | | | | | {max(row.above for row in rows):+.1f} at most | | | {passes[0] / passes[1]:.1f} | "
            f"{passes[2] / passes[3]:.2f} | | |"
        )
    return lines


def _of(counts: tuple[int, int] | None) -> str:
    return f"{counts[0]} of {counts[1]}" if counts and counts[1] else "-"


def exact_table(found: dict[str, Verdicts]) -> list[str]:
    """What each suite finds of what can be broken."""
    lines = [
        "| model | ball | images | breakable | AutoAttack | adaptive | exhaustive | broken but not breakable |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = np.zeros(6, dtype=int)
    for name, one in found.items():
        truth = one.breakable
        counts = [len(one.broken[suite] & truth) for suite in SUITES]
        wrong = len(set().union(*one.broken.values()) - truth)
        row = [len(one.ids), len(truth), *counts, wrong]
        total += np.array(row)
        lines.append(f"| {name} | {PROBLEMS[name].threat} | {' | '.join(map(str, row))} |")
    return [*lines, f"| all | | {' | '.join(map(str, total))} |"]


def head(arguments: argparse.Namespace) -> list[str]:
    """What was run, where and when."""
    return [
        "# A zoo of small networks: AutoAttack, adaptive, exhaustive",
        "",
        f"{datetime.date.today().isoformat()}, {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread. Made by `make bench-zoo`, here with `--few {arguments.few} --long "
        f"{arguments.long}`.",
        "",
        f'The first {N} test images of each; accuracies in %. "Fewer by": AutoAttack\'s passes over those of '
        "`adaptive`. `exhaustive` and Square with ten times the queries got those of AutoAttack's survivors that came "
        "nearest to breaking, and broke so many of them. Held out: nothing was chosen by looking at it.",
        "",
    ]


EXACT = (
    "",
    "## Networks whose exact answer is known",
    "",
    "Perceptrons on digits of 7 x 7 pixels; of the first 300 test images that a network classifies correctly, the 20 "
    "that the suite `quick` did not break and came nearest to breaking. Breakable: by a mixed-integer program "
    "(`scipy.optimize.milp`), which proves it. AutoAttack and `adaptive` attacked all 300, `exhaustive` the 20.",
    "",
)


def main() -> None:
    """Measure, print, and write where all was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="a folder of CIFAR-10 parquet files; without it the members on digits alone")
    parser.add_argument("--members", nargs="*", help=f"of {', '.join([*ZOO, *PROBLEMS])}; default: all")
    parser.add_argument("--few", type=int, default=20, help="survivors that `exhaustive` gets")
    parser.add_argument("--long", type=int, default=0, help="survivors that get ten times Square's queries")
    parser.add_argument("--report", action="store_true", help="leave out what is not done yet")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "toughen-zoo")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    named = arguments.members or [*ZOO, *PROBLEMS]
    rows, solved = [], {}
    for name in named:
        if name in PROBLEMS:
            found = verdicts(name, arguments.cache, report=arguments.report)
            solved |= {name: found} if found else {}
        elif arguments.data or ZOO[name].data != "cifar10":
            rows.append(row_of(name, arguments.cache, arguments.data, arguments.few, arguments.long, arguments.report))
            print(zoo_table(rows)[-2], flush=True)
    text = "\n".join([*head(arguments), *zoo_table(rows), *EXACT, *exact_table(solved), ""])
    print(text)
    if not arguments.members:
        # What was concluded by hand stays below the figures.
        _, mark, reading = (RESULT.read_text() if RESULT.exists() else "").partition("\n## Reading\n")
        RESULT.write_text(text + mark + reading)


if __name__ == "__main__":
    main()
