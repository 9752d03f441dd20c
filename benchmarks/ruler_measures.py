"""What `ruler.py` measures of a source tree, in a process of its own: `python ruler_measures.py GROUP SOURCE KEEP`.

Works in the current folder, which it fills, and prints the group's digests as JSON on its last line. Nearly all goes
through the command line (`python -m toughen`, run within this process, for it takes seconds to import torch) and the
other names that the package promises, so that trees of other inner names can be compared.
"""

import contextlib
import inspect
import io
import json
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ruler_cases import (
    FORMS,
    FROZEN,
    LISTS,
    LONG_SUITES,
    NETWORK_SUITES,
    OPTIONS,
    PGD,
    RADII,
    SCALES,
    SHORT,
    SHORT_SUITES,
    TRAINED,
    VARIANTS,
    write_frozen,
    write_recipe,
    write_study,
)
from ruler_digests import Digests, tensor_bytes


def toughen(*arguments: object, code: int = 0) -> str:
    """What the command prints, run within this process; its exit code must be `code`."""
    said, errors, sys.argv = io.StringIO(), io.StringIO(), ["toughen", *map(str, arguments)]
    ended = None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module("toughen", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            ended = end.code or 0
    assert ended == code, (arguments, ended, errors.getvalue())
    return said.getvalue()


def lists(digests: Digests) -> None:
    """`toughen list`, and every shipped recipe as `--dry-run` resolves it."""
    for what in LISTS:
        said = toughen("list", what)
        names = [line.split()[0] for line in said.splitlines()[1:]]
        digests.add(f"list/{what}", "\n".join(names).encode())
        digests.words(f"list/{what}", said)
        if what == "recipes":
            twins = [line.split()[0] + "-small" for line in said.splitlines() if "[also as -small]" in line]
            for name in (*names, *twins):
                lines = toughen("train", name, "--dry-run").splitlines()
                digests.add(f"recipes/{name}", "\n".join(line for line in lines if not line.startswith("#")).encode())
                digests.words(f"recipes/{name}", "\n".join(line for line in lines if line.startswith("#")))


def plans(digests: Digests) -> None:
    """Every shipped study as it is resolved: its rows, trainings, columns and published values."""
    from toughen.studies.create import create_folder
    from toughen.studies.text import load

    for line in toughen("study", "list").splitlines():
        name = line.partition(":")[0]
        for scale in SCALES:
            folder = Path(f"{name}-{scale}")
            said = toughen("study", "run", name, "--scale", scale, "--dry-run", "--out", folder)
            digests.words(f"studies/{folder}", said)
            create_folder(load(name), scale, folder, name=name)
            digests.folder(f"studies/{folder}", folder)


def trainings(digests: Digests) -> None:
    """A few batches by every form of every method, and by other settings."""
    for name, changes in FORMS.items():
        if name == "frozen-trunk":
            shutil.copy(Path("natural/checkpoints") / "step-000000012" / "weights.safetensors", "weights.safetensors")
        toughen("train", write_recipe(Path(f"{name}.yaml"), **changes), "--out", name)
        digests.folder(f"training/{name}", Path(name))


def frozen(name: str) -> nn.Module:
    """A frozen network in float64, in inference mode."""
    from toughen.models import build

    model = build("small_cnn", num_classes=10, in_channels=1, norm="batch")
    model.load_state_dict(load_file(FROZEN / f"{name}.safetensors"))
    return model.double().eval()


def digits(n: int) -> tuple[Tensor, Tensor]:
    """The first test images (n, 1, 28, 28), float64 in [0, 1], and their labels."""
    from toughen.data import load

    test = load("mnist5k").test
    return torch.stack(list(test.images[:n])).double() / 255, test.labels[:n]


def attacks(digests: Digests) -> None:
    """Every attack called by hand, in float64, in balls of either norm with one radius and with one for each image."""
    from toughen import L2, Linf
    from toughen.attacks import ATTACKS

    x, y = digits(10)
    rows = {name: (name, SHORT.get(name, {})) for name in ATTACKS} | VARIANTS
    for model_name in ("robust", "standard"):
        model, radii = frozen(model_name), RADII[model_name]
        linf, l2 = float(radii["linf"]), float(radii["l2"])
        shares = torch.linspace(0, 1.5, len(x), dtype=x.dtype)
        balls = {"linf": Linf(linf), "l2": L2(l2), "linf, each": Linf(shares * linf), "l2, each": L2(shares * l2)}
        for label, (name, settings) in rows.items():
            takes = inspect.signature(ATTACKS[name]).parameters
            for ball_name, ball in balls.items() if "threat" in takes else [("no ball", None)]:
                given = {"threat": ball} if "threat" in takes else {}
                try:
                    x_adv = ATTACKS[name](model, x, y, **given, **settings)
                except ValueError as refused:
                    digests.words(f"attacks/{model_name}/{label}, {ball_name}", str(refused))
                else:
                    digests.add(f"attacks/{model_name}/{label}, {ball_name}", tensor_bytes(x_adv))


def networks(digests: Digests) -> None:
    """Every network by name, with weights drawn under a seed: names, shapes and bits of its weights, and its logits."""
    from toughen.models import build

    names = [line.split()[0] for line in toughen("list", "models").splitlines()[1:]]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in (("wrn-10-2" if name == "wrn-D-W" else name) for name in names):
        torch.manual_seed(0)
        model = build(name, num_classes=10, in_channels=3, mean=[0.5] * 3, std=[0.25] * 3).eval()
        weights = (key.encode() + b" " + tensor_bytes(value) for key, value in model.state_dict().items())
        digests.add(f"networks/{name}/weights", b"".join(weights))
        with torch.no_grad():
            digests.add(f"networks/{name}/logits", tensor_bytes(model(x)))


def corruptions(digests: Digests) -> None:
    """Every corruption of images of two sizes, at each severity."""
    from toughen.corruptions import CORRUPTIONS, corrupt

    draw = torch.Generator().manual_seed(0)
    for side, channels in ((28, 1), (32, 3), (80, 3)):
        coarse = torch.rand(2, channels, 8, 8, generator=draw)
        images = (nn.functional.interpolate(coarse, size=side, mode="bilinear") * 255).to(torch.uint8)
        for name in CORRUPTIONS:
            some = torch.stack([corrupt(images, name, severity) for severity in range(1, 6)])
            digests.add(f"corruptions/{side}x{side}x{channels}/{name}", tensor_bytes(some))


def _evaluated(digests: Digests, name: str, suites: Mapping[str, list[str]], ball: str) -> None:
    what = write_frozen(Path(), name)
    for label, more in suites.items():
        given = ["--data", "mnist5k", "--threat", ball, "--limit", 8, "--out", f"{name}/{label}"]
        toughen("evaluate", what, *given, *more)
        digests.folder(f"evaluations/{name}/{label}", Path(name) / label)


def evaluations_of_linear(digests: Digests) -> None:
    """Every suite, on the linear model; the short ones in the L2 ball too, and by other options."""
    names = {suite: ["--suite", suite] for suite in (*SHORT_SUITES, *LONG_SUITES)}
    _evaluated(digests, "linear", names, f"linf:{RADII['linear']['linf']}")
    names = {f"{suite}, l2": ["--suite", suite] for suite in (*SHORT_SUITES, "autoattack")}
    _evaluated(digests, "linear", names, f"l2:{RADII['linear']['l2']}")
    options = {label: ["--suite", "quick", *more] for label, more in OPTIONS.items() if label != "step size"}
    _evaluated(digests, "linear", options, f"linf:{RADII['linear']['linf']}")
    options = {"step size": ["--suite", "pgd-20", *OPTIONS["step size"]]}
    _evaluated(digests, "linear", options, f"linf:{RADII['linear']['linf']}")


def evaluations_of(name: str) -> Callable[[Digests], None]:
    """Evaluations of a frozen network."""

    def evaluations(digests: Digests) -> None:
        names = {suite: ["--suite", suite] for suite in NETWORK_SUITES}
        _evaluated(digests, name, names, f"linf:{RADII[name]['linf']}")

    return evaluations


def verbs(digests: Digests) -> None:
    """A run and all that is done with one: check, evaluate, corruptions, analyse, export, label, report; and again."""
    adaptive = {"name": "instance_adaptive", "attack": {"name": "pgd", "steps": 2}, "warmup": 6}
    toughen("train", write_recipe(Path("run.yaml"), method=adaptive, steps=24), "--out", "run")
    digests.words("verbs/check", toughen("check", "run"))
    for limit, suite in ((40, "quick"), (20, "corruptions")):
        toughen("evaluate", "run", "--suite", suite, "--limit", limit)
    toughen("analyse", "run", "--limit", 8)
    digests.folder("verbs/run", Path("run"))
    digests.words("verbs/export", toughen("export", "run", "--out", "exported"))
    digests.folder("verbs/exported", Path("exported"))
    toughen("evaluate", "exported", "--data", "mnist5k", "--suite", "pgd-5", "--limit", 20, "--out", "of-exported")
    digests.folder("verbs/of-exported", Path("of-exported"))
    _labelled(digests)
    pages = ["report", "run", "--out", "page.html", "--figures", "figures", "--plain"]
    digests.words("verbs/report", toughen(*pages))
    digests.file("verbs/page.html", Path("page.html"))
    digests.folder("verbs/figures", Path("figures"))
    digests.words("verbs/refused", _refusals())


def _labelled(digests: Digests) -> None:
    """An extra set from a pool with copies of test images in it, and a training with that."""
    from toughen.data import load

    data = load("mnist5k")
    train, test = (torch.stack(list(part.images[:150])).numpy() for part in (data.train, data.test))
    train[:5] = test[:5]
    labels = np.zeros(len(train), dtype=np.int64)
    np.savez("pool.npz", train_images=train, train_labels=labels, test_images=test, test_labels=labels)
    given = ["--against", "mnist5k", "--count", 60, "--count", 30, "--threshold", "10/255", "--probabilities"]
    toughen("label", "pool.npz", "--scorer", "run", *given, "--out", "extra")
    digests.folder("verbs/extra", Path("extra"))
    extra = {**TRAINED["data"], "extra": {"source": "extra", "labelled": 0.5}}
    toughen("train", write_recipe(Path("with-extra.yaml"), data=extra, method=PGD), "--out", "with-extra")
    digests.folder("verbs/with-extra", Path("with-extra"))


def _refusals() -> str:
    """What the command says to mistakes; the exit code is 2."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        for arguments in (["train", "nowhere"], ["evaluate", "nowhere"], ["list", "nothing"], ["export", "nowhere"]):
            given = [*arguments, "--out", "x"] if arguments[0] == "export" else arguments
            toughen(*given, code=2)
    return said.getvalue()


def study(digests: Digests) -> None:
    """A study of two rows: its folder, its table in both forms, its page."""
    toughen("study", "run", write_study(Path()), "--scale", "toy", "--out", "study")
    digests.folder("study/folder", Path("study"))
    Path("table.csv").write_text(toughen("study", "table", "study", "--csv"), encoding="utf-8")
    digests.file("study/table.csv", Path("table.csv"))
    digests.words("study/table", toughen("study", "table", "study"))
    digests.words("study/status", toughen("study", "status", "study"))
    digests.words("study/report", toughen("report", "study", "--out", "page.html", "--figures", "figures", "--plain"))
    digests.file("study/page.html", Path("page.html"))
    digests.folder("study/figures", Path("figures"))


GROUPS: dict[str, Callable[[Digests], None]] = {
    "evaluations-linear": evaluations_of_linear,
    "trainings": trainings,
    "evaluations-robust": evaluations_of("robust"),
    "plans": plans,
    "verbs": verbs,
    "evaluations-standard": evaluations_of("standard"),
    "attacks": attacks,
    "lists": lists,
    "networks": networks,
    "study": study,
    "corruptions": corruptions,
}
"""In an order that fills two processes evenly."""


def main() -> None:
    """Measure a group."""
    group, source, keep = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    import toughen as package

    at = Path(package.__file__).resolve()
    assert at.is_relative_to(source), f"toughen came from {at} and not from {source}"
    digests = Digests(Path(keep[0]) if keep else None)
    GROUPS[group](digests)
    print(json.dumps(digests.found))


if __name__ == "__main__":
    main()
