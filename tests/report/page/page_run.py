"""A run folder written by hand, every text in it chosen by the test, and what a reader of a page sees in it."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from toughen.evaluation import (
    CorruptionResult,
    EpsSweep,
    Evaluation,
    GradientMagnitude,
    LossSurface,
    StepSweep,
    WeaklyBounded,
)
from toughen.evaluation.analyses.image_grid import Pictures
from toughen.evaluation.audit.findings import Audit, Finding
from toughen.outcomes import COLUMNS, Outcomes

Word = Callable[[str], str]
CORRUPTED = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
CORRUPTED += ("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression")
CORRUPTED += ("speckle_noise", "gaussian_blur", "spatter", "saturate")
N, K = 40, 4


def outcomes(attacks: tuple[str, ...], seed: int = 0) -> Outcomes:
    """A cascade on N examples of K classes: clean, `attacks`, and an attack aside that meets everybody."""
    draw = np.random.default_rng(seed)
    label = np.arange(N) % K
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def add(attack: str, ids: np.ndarray, broken: np.ndarray, aside: bool = False) -> None:
        for number, breaks in zip(ids.tolist(), broken.tolist(), strict=True):
            true = int(label[number])
            values = {
                "attack": attack,
                "index": number,
                "label": true,
                "prediction": (true + 1 + number % (K - 1)) % K if breaks else true,
                "survived": not breaks,
                "distance": 0.1,
                "loss": 0.5,
                "margin": 0.2,
                "marginal": number == 7,
                "forwards": 3,
                "backwards": 2,
                "seed": 0,
                "aside": aside,
            }
            for name, value in values.items():
                rows[name].append(value)

    ids = np.arange(N)
    wrong = draw.random(N) < 0.15
    add("clean", ids, wrong)
    left = ids[~wrong]
    for attack in attacks:
        broken = draw.random(len(left)) < 0.25
        add(attack, left, broken)
        left = left[~broken]
    add("aside", ids[~wrong], draw.random(int((~wrong).sum())) < 0.5, aside=True)
    return Outcomes(**{name: np.array(column) for name, column in rows.items()})


def plain_word(where: str) -> str:
    return f"text {where}"


def make_run(path: Path, word: Word = plain_word, *, analyses: bool = True) -> Path:
    """A finished run of IAAT with two evaluations, corruptions and every analysis; `word` gives each of its texts."""
    path.mkdir(parents=True)
    recipe = {"name": word("recipe"), "data": {"source": word("source")}, word("key"): word("value")}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    average = word("average")
    best = {"step": 20, "clean_accuracy": 0.75, "robust_accuracy": 0.5}
    summary = {
        "name": word("name"),
        "method": word("method"),
        "threat": "linf:8/255",
        "steps": 20,
        "forwards": 60,
        "backwards": 50,
        "natural_steps": 36.7,
        "predicted_natural_steps": 36.0,
        "seconds": 12.5,
        "peak_memory_bytes": 2**30,
        "best": {"weights": best, average: best},
        "device": word("device"),
        "ranks": 1,
        "threads": 2,
        "torch": word("torch"),
    }
    _json(path / "summary.json", summary)
    edges = [level / 255 for level in range(17)]
    lines: list[dict[str, Any]] = []
    for step in (10, 20):
        radii = {"radius_mean": step / 2550, "radius_of": {word("image"): 0.01, "2": step / 2550}}
        radii["radius_histogram"] = {"edges": edges, "counts": [step] * 16}
        lines.append({"step": step, "lr": 0.1, "loss": 2.0 / step, "robust_batch_accuracy": 0.4, **radii})
        accuracy = {"clean_accuracy": 0.7, "robust_accuracy": 0.4}
        lines.append({"step": step, "validation": {"weights": accuracy, average: accuracy}})
        watched = {"one_step_accuracy": 0.9, "pgd_accuracy": 0.1}
        lines.append({"step": step, "overfitting": watched | ({"alarm": word("alarm")} if step == 20 else {})})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    (path / "timing.jsonl").write_text('{"step": 10, "seconds": 1.0, "images_per_second": 250.0}\n')
    state = path / "checkpoints" / "step-000000020" / "state.json"
    state.parent.mkdir(parents=True)
    classes = [word(f"class {number}") for number in range(K)]
    _json(state, {"data": {"classes": classes}})
    strong = word("attack")
    for name, attacks, seed in (("autoattack_n40", ("apgd-ce", strong), 0), ("pgd-20_n40", ("pgd-20",), 1)):
        finding = Finding("EV286", word("finding"), {}, word("remedy"))
        audit = Audit((finding,) if seed == 0 else (), (word("unchecked"),), N, 1, 1, (0,), (0,), (0,))
        Evaluation(
            outcomes=outcomes(attacks, seed),
            threat="linf:8/255",
            suite=word("suite"),
            settings={**{attack: {"name": word("spec")} for attack in attacks}, "aside": {"threat": word("ball")}},
            seed=0,
            seconds=3.0,
            notes=(word("note"),),
            device=word("evaluated on"),
            torch="2",
            identity={},
            audit=audit,
        ).write(path / "evaluation" / name)
    make_corruptions(path / "evaluation" / "corruptions_n40", word)
    if analyses:
        make_analyses(path / "analysis", word, classes)
    return path


def make_corruptions(folder: Path, word: Word) -> None:
    draw, label = np.random.default_rng(3), np.arange(N) % K
    prediction = np.where(draw.random((19, 5, N)) < 0.3, (label + 1) % K, label)
    CorruptionResult(
        corruptions=CORRUPTED,
        severities=(1, 2, 3, 4, 5),
        label=label,
        clean=np.where(draw.random(N) < 0.1, (label + 1) % K, label),
        prediction=prediction,
        classes=K,
        origin="generated",
        constants="cifar",
        seed=0,
        seconds=1.0,
        notes=(word("corruption note"),),
        device="cpu",
        torch="2",
        identity={},
    ).write(folder)


def make_analyses(folder: Path, word: Word, classes: list[str]) -> None:
    folder.mkdir()
    draw = np.random.default_rng(5)
    ids, label = np.arange(6), np.arange(6) % K
    right = np.ones(6, dtype=bool)
    survived = np.array([[True] * 6, [True] * 4 + [False] * 2, [True] * 5 + [False]])
    none = np.zeros((3, 6), dtype=bool)
    radii = np.array([0, 4, 8]) / 255
    EpsSweep("linf", word("sweep"), [{}] * 3, 0, radii, ids, right, survived, none).write(folder / "eps-sweep.json")
    steps = np.array([1, 10, 100])
    sweep = StepSweep(word("swept"), "ce", 0.01, True, 0, steps, ids, right, ids * 0 - 1, survived, none)
    sweep.write(folder / "step-sweep.json")
    GradientMagnitude(ids, np.array([0.0, 0.1, 0.2, 0.5, 1.0, 4.0])).write(folder / "gradients.json")
    signs = np.ones((1, 1, 8, 8))
    offsets = np.linspace(-0.03, 0.03, 5)
    surface = LossSurface(
        "adversarial", 0.03, 0, ids[:1], label[:1], offsets, signs, signs, draw.random((1, 5, 5)), np.zeros((1, 5, 5))
    )
    surface.write(folder / "surface-0.npz")
    image = draw.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    floats = image.astype(np.float32) / 255
    turned = WeaklyBounded(
        30 / 255,
        50,
        2 / 255,
        ids,
        label,
        floats,
        floats,
        image,
        label,
        label,
        (label + 1) % K,
        radii[[0] * 6],
        radii[[0] * 6],
    )
    turned.write(folder / "turns-into.npz")
    for name in ("pictures", "radii-smallest", "radii-largest"):
        Pictures(
            title=word("title"),
            variants=[word("variant"), "own radius"],
            classes=classes,
            index=ids,
            label=label,
            radius=ids / 255,
            image=image,
            clean_prediction=label,
            adversarial=np.stack([image, 255 - image]),
            prediction=np.stack([label, (label + 1) % K]),
        ).write(folder / f"{name}.npz")


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=True), encoding="utf-8")


class Read(HTMLParser):
    """A page as a browser reads it: elements with the names of their attributes, addresses, tables, all text."""

    ADDRESSES = ("href", "src", "action", "srcset", "data", "xlink:href", "formaction", "poster")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.drawn: set[tuple[str, tuple[str, ...]]] = set()
        self._drawing = 0
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self.styles = self.scripts = ""
        self._caption: str | None = None
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._drawing += tag == "svg"
        names = tuple(sorted(name for name, _ in attrs))
        # How many ticks and letters fit into a drawing depends on how long its texts are.
        self.drawn.add((tag, names)) if self._drawing else self.elements.append((tag, names))
        for name, value in attrs:
            if name in self.ADDRESSES:
                # Pixels differ with the text that is drawn in them.
                self.addresses.append((value or "").split(",")[0])
            if name == "id":
                self.ids.append(value or "")
        self._inside = tag
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "caption":
            self._caption = ""
        elif tag == "tr" and self._caption is not None:
            self.tables.setdefault(self._caption, []).append([])
        elif tag in ("td", "th") and self._caption is not None:
            self.tables[self._caption][-1].append("")
        elif tag == "small" and self._caption is not None:
            self.tables[self._caption][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if not self._drawing:
            self.elements.append((f"/{tag}", ()))
        self._drawing -= tag == "svg"
        if tag == "table":
            self._caption = None
        self._inside = ""

    def handle_comment(self, data: str) -> None:
        self.elements.append(("!--", (data,)))

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles += data
        elif self._inside == "script":
            self.scripts += data
        else:
            self.text.append(data)
        if self._caption is not None and self._inside == "caption":
            self._caption += data
        elif self._caption is not None and self._caption in self.tables and self._inside in ("td", "th", "a", "small"):
            self.tables[self._caption][-1][-1] += data
