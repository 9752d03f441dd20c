"""Recipes drawn at random, whole ones and spoilt ones, for `test_fuzz_recipes.py`.

What a field allows is written down here once more, by hand, so that a field which the schema leaves open shows.
"""

import copy
import math
import string
from collections.abc import Iterator
from random import Random
from typing import Any

Path = tuple[Any, ...]

NEVER = [
    *(
        math.nan,
        math.inf,
        -math.inf,
        "nan",
        "NaN",
        "inf",
        "-inf",
        "Infinity",
        "1e999",
        "-1e999",
        "1e308/1e-308",
        10**400,
    ),
    *(
        "0x10",
        "0b1",
        "no",
        "on",
        "off",
        "yes",
        ".5.5",
        "1..2",
        "8/0",
        "8//255",
        "8/255/2",
        "/",
        "1,5",
        "1:30",
        "abc",
        "",
    ),
    *("2001-01-01", "1e", "--1", "__1", "1__0", "1e3e3", "eval(1)", "1+1", "2**3", "10%", "½", "9" * 5000),
    *(True, False, [], [1], [[]], {}, {"a": 1}),
]
"""No number of a recipe is any of these."""

NOT_WHOLE = ["8/255", "0.5", 0.5, 2.5, "1e-3"]
"""Nor, where it counts something, one of these."""

ZERO = {
    "pad",
    "workers",
    "overfitting_every",
    "seed",
    "momentum",
    "weight_decay",
    "warmup",
    "start",
    "averages",
    "mean",
}
ZERO |= {"gamma", "beta", "lower", "warmup_radius", "alpha", "alignment", "noise_scale", "refine", "max_confidence"}
ZERO |= {"random_share", "last_step", "p_init", "alpha_max", "smoothing", "share", "mass"}
"""Fields that may be zero; no other may."""

BELOW_ZERO = {"mean"}
"""Fields that may be negative; no other may."""

MODELS = [
    "small_cnn",
    {"name": "small_cnn", "width": 3, "norm": "batch", "activation": "silu", "weights": "net.pt"},
    {"name": "wrn-10-1", "padding": "end"},
    {"name": "resnet18", "width": 2, "freeze": True},
    {"name": "preact_resnet18", "width": 2},
    {"name": "madry-w32-10", "width": 1},
]
ATTACKS = [
    "fgsm",
    {"name": "pgd", "steps": 3, "step_size": "2/255", "random_start": "unclipped", "restarts": 2, "loss": "kl"},
    {"name": "pgd", "steps": "2", "attack_bn": "train", "keep": "highest_loss", "loss": "margin-50"},
    {"name": "rs_fgsm", "step_share": "5/4"},
    {"name": "r_fgsm", "random_share": "1/2"},
    {"name": "mi_fgsm", "steps": 2, "decay": 0.5},
    {"name": "adam_pgd", "steps": 2},
    {"name": "targeted_pgd", "steps": 2, "target": "least_likely"},
    {"name": "apgd", "steps": 3},
    {"name": "square", "queries": 3},
]
METHODS: list[Any] = [
    "natural",
    {"name": "natural", "replays": 2},
    {"name": "free", "replays": 3, "memory": "image", "radius_scale": "1.1"},
    {"name": "adversarial", "noise_scale": 2, "alignment": "0.2", "attack": "fgsm"},
    {"name": "adversarial", "threat": "l2:1/2", "attack": None},
    {"name": "trades", "beta": 6, "attack": {"name": "pgd", "steps": 2, "loss": "kl"}},
    {"name": "mart", "beta": "5.0", "attack": {"name": "pgd", "steps": 2}},
    {"name": "instance_adaptive", "warmup": 3, "gamma": "1.9/255", "warmup_radius": "4/255"},
    {"name": "instance_adaptive", "selection": "line_search", "grid": "1/255", "largest": "4/255"},
    {"name": "bilateral"},
    {"name": "interpolated", "alpha": 0.5, "attack": {"name": "pgd", "steps": 2}},
    {"name": "mixup", "alpha": 1, "method": {"name": "adversarial", "attack": None}},
    {"name": "label_smoothing", "method": {"name": "mixup", "method": "natural"}},
]
SCHEDULES = [
    "cosine",
    {"name": "multistep", "milestones": ["1/2", 0.75], "decay": "1e-1"},
    {"name": "exponential", "final": 0.01},
    {"name": "one_cycle", "peak": "0.3"},
]
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"lr": 1, "momentum": 0, "nesterov": True}}, "momentum"),
    ({"data": {"source": "a", "limit": 10, "per_class": 2}}, "per_class"),
    ({"data": {"source": "a", "resize": 64}}, "resize"),
    ({"data": {"source": "a", "size": 64, "resize": 32}}, "resize"),
    ({"data": {"source": "a", "repeats": 7}, "batch_size": 32}, "repeats"),
    ({"data": {"source": "a", "repeats": 2}, "method": {"name": "free", "memory": "image"}}, "repeats"),
    ({"micro_batch": 2, "method": "interpolated"}, "micro_batch"),
    ({"sharding": "full", "weight_perturbation": {}}, "weight_perturbation"),
    ({"sharding": "full", "micro_batch": "auto", "method": "free", "weight_perturbation": None}, "micro_batch"),
    ({"averages": [0.9, "9/10"]}, "averages"),
    ({"normalize": {"mean": [0.5, 0.5], "std": [1]}}, "std"),
    ({"normalize": {"mean": [], "std": []}}, "mean"),
    ({"schedule": {"name": "multistep", "milestones": []}}, "milestones"),
    ({"threat": "linf:1", "method": {"name": "free", "radius_scale": 1.1}}, "radius_scale"),
    (
        {"threat": "l2:1e308", "method": {"name": "mixup", "method": {"name": "free", "radius_scale": 10}}},
        "radius_scale",
    ),
    ({"method": {"name": "instance_adaptive", "selection": "line_search", "grid": 1e-9, "largest": 1}}, "grid"),
    ({"method": {"name": "instance_adaptive", "selection": "line_search", "grid": 0.1, "largest": 0.01}}, "grid"),
    ({"method": {"name": "mixup", "method": "instance_adaptive"}}, "instance_adaptive"),
    ({"data": ""}, "source"),
    ({"data": {"source": "a", "extra": {"labelled": 0.5}}}, "source"),
]
"""Values that contradict one another or are empty, and what the sentence names."""


def whole(draw: Random) -> dict[str, Any]:
    """A valid recipe, whose attacks are short: a dry run counts their passes by running them."""
    method = copy.deepcopy(draw.choice(METHODS))
    inner = method
    while isinstance(inner, dict) and isinstance(inner.get("method"), dict):
        inner = inner["method"]
    if isinstance(inner, dict) and inner.get("attack", 0) is None:
        inner["attack"] = copy.deepcopy(draw.choice(ATTACKS))
    chosen: dict[str, Any] = {
        "data": {"source": "mnist5k", "flip": draw.random() < 0.5, "pad": draw.randrange(5)},
        "model": copy.deepcopy(draw.choice(MODELS)),
        "method": method,
        "threat": draw.choice(["linf:8/255", "l2:0.5", "linf:1e-2", "L2:128/255"]),
        "steps": draw.choice([8, "1_000", "16", 2**40]),
    }
    optional: dict[str, Any] = {
        "name": draw.choice(["a", "no", "1e3", "é", "true", " x"]),
        "batch_size": draw.choice([1, "32", 256]),
        "optimizer": {"lr": draw.choice([0.1, "1e-3", "8/255"]), "momentum": draw.choice([0, 0.9]), "warmup": "1/10"},
        "schedule": copy.deepcopy(draw.choice(SCHEDULES)),
        "averages": draw.sample([0, 0.5, "0.995", "0.999"], draw.randrange(4)),
        "normalize": draw.choice(["none", "data", "per_image", {"mean": ["-1/2"], "std": [0.5]}]),
        "selection": draw.choice(["pgd-3", {"suite": "cw-2-r3", "every": 3}]),
        "weight_perturbation": draw.choice([None, {"gamma": "5e-3", "start": 0.5}]),
        "overfitting_every": draw.choice([None, 0, 4]),
        "seed": draw.choice([0, "010", 2**63 - 1]),
        "log_every": 5,
        "save_every": "7",
    }
    if draw.random() < 0.3:
        chosen["data"] |= {"size": 32, "resize": "40", "crop_area": "1/4", "workers": 0, "validation": 16}
        chosen["data"]["extra"] = {"source": "extra.npz", "labelled": "0.3", "limit": 9}
    return chosen | {key: value for key, value in optional.items() if draw.random() < 0.5}


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is no section and no list, with the keys that lead to it."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def sections(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of all mappings that hold something."""
    if isinstance(value, dict) and value:
        yield path
        for key, item in value.items():
            yield from sections(item, (*path, key))


def at(mapping: Any, path: Path) -> Any:
    """What lies at a path."""
    for key in path:
        mapping = mapping[key]
    return mapping


def put(mapping: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    made = copy.deepcopy(mapping)
    at(made, path[:-1])[path[-1]] = value
    return made


def renamed(mapping: dict[str, Any], path: Path, key: str, other: str) -> dict[str, Any]:
    """A copy in which a key of the section at a path is called otherwise."""
    made = copy.deepcopy(mapping)
    section = at(made, path)
    items = {other if name == key else name: value for name, value in section.items()}
    section.clear()
    section.update(items)
    return made


def slip(draw: Random, word: str) -> str:
    """The word with one letter left out, doubled, swapped with the next, or replaced."""
    i, letter = draw.randrange(len(word)), draw.choice(string.ascii_lowercase)
    return draw.choice(
        [
            word[:i] + word[i + 1 :],
            word[:i] + letter + word[i:],
            word[:i] + letter + word[i + 1 :],
            word[:i] + word[i + 1 : i + 2] + word[i : i + 1] + word[i + 2 :],
        ]
    )


def one_slip_apart(word: str, other: str) -> bool:
    """Whether one slip makes a word of the other: edits of one letter, and swaps of neighbours."""
    if abs(len(word) - len(other)) > 1 or word == other:
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    a, b = word[start:], other[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def impossible(draw: Random, path: Path, number: float) -> Any:
    """A value that the number at a path can never have."""
    field = next(key for key in reversed(path) if isinstance(key, str))
    values = [*NEVER]
    values += NOT_WHOLE if isinstance(number, int) else []
    values += [] if field in BELOW_ZERO else [-1, "-1", -1e-9, "-8/255", -(10**30)]
    values += [] if field in ZERO else [0, "0", 0.0, "0/255", "-0"]
    return draw.choice(values)


def garbled(draw: Random, text: str) -> bytes:
    """YAML text with a few bytes changed, lost, doubled or added."""
    content = bytearray(text.encode())
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        i = draw.randrange(len(content) or 1)
        bit = draw.choice(
            [b"\0", b"\xff", b"\t", b":", b"- ", b"[", b"}", b"&a ", b"*a", b"!!int ", b"'", b'"', b"#", b"\n"]
        )
        bit = draw.choice(
            [bit, bit, bytes([draw.randrange(256)]), b"%", b"|", b">", b"? ", b"~", b"---\n", b"...\n", b"1e-3"]
        )
        content[i : i + draw.choice([0, 0, 1, 1, 3, 30])] = draw.choice([bit, bit, b"", content[i : i + 40]])
    return bytes(content)
