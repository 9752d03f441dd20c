"""Adversarial examples that are kept are exactly those that are reported, and convince somebody else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from processes import run_script
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.plan import SideAttack
from toughen.evaluation.resume import Keep, adversarial_examples
from toughen.storage import files
from toughen.threat import L2, Linf
from toys import labels, network, photographs, spec

N = 100
IDS = torch.arange(N) * 3 + 50
SUITE = {
    "r_fgsm": spec("r_fgsm"),
    "pgd": spec("pgd", steps=4),
    "wide": SideAttack(spec("fgsm"), Linf(8 / 255)),
    "nothing": lambda model, x, y: x,
}


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    model, x = network(), photographs(N)
    y = labels(model, x.float() / 255)
    y[::8] = (y[::8] + 1) % 5
    return model, x, y


def kept(folder: Path, keep: Keep, **changes: object) -> Evaluation:
    model, x, y = problem()
    given: dict[str, object] = {"threat": Linf(3 / 255), "suite": SUITE, "index": IDS, "chunk_size": 32} | changes
    return evaluate(model, x, y, folder=folder, keep=keep, **given)  # pyright: ignore[reportArgumentType]


def broken(evaluation: Evaluation, attack: str) -> list[int]:
    o = evaluation.outcomes
    return o.index[(o.attack == attack) & ~o.survived].tolist()


@pytest.mark.parametrize("keep", ["float32", "uint8"])
def test_exactly_the_broken_examples_are_kept(keep, tmp_path):
    evaluation = kept(tmp_path, keep)
    found = adversarial_examples(tmp_path)
    assert list(found) == ["r_fgsm", "pgd", "wide"]
    for attack, part in found.items():
        assert part.index.tolist() == broken(evaluation, attack) != []
        assert part.images.shape == (len(part.index), 3, 8, 8)
        assert part.images.dtype == getattr(torch, keep)
        assert (part.fools is None) == (keep == "float32")
    plain = evaluate(*problem(), threat=Linf(3 / 255), suite=SUITE, index=IDS, chunk_size=32)
    assert broken(plain, "pgd") == broken(evaluation, "pgd"), "keeping changes nothing"


RECHECK = """
import json, sys
from pathlib import Path
import torch
sys.path.append(sys.argv[2])
from test_keep import IDS, problem
from toughen.evaluation.resume import adversarial_examples
model, x, y = problem()
model.eval()
said = {}
for attack, part in adversarial_examples(Path(sys.argv[1])).items():
    rows = (part.index - 50) // 3
    moved = (part.images.double() - x[rows].double() / 255).abs().amax((1, 2, 3))
    with torch.no_grad():
        wrong = [bool(model(image[None]).argmax() != label) for image, label in zip(part.images, y[rows])]
    said[attack] = {"furthest": moved.max().item(), "wrong": sum(wrong), "n": len(wrong),
                    "box": [part.images.min().item(), part.images.max().item()]}
print(json.dumps(said))
"""


def test_a_fresh_process_finds_them_adversarial(tmp_path):
    evaluation = kept(tmp_path, "float32")
    (tmp_path / "recheck.py").write_text(RECHECK)
    done = run_script(tmp_path / "recheck.py", tmp_path, Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    radii = {"r_fgsm": 3 / 255, "pgd": 3 / 255, "wide": 8 / 255}
    assert said.keys() == radii.keys()
    for attack, numbers in said.items():
        assert numbers["wrong"] == numbers["n"] == len(broken(evaluation, attack))
        assert radii[attack] * 0.9 < numbers["furthest"] <= radii[attack] + 6e-8
        assert 0 <= numbers["box"][0] <= numbers["box"][1] <= 1


@pytest.mark.parametrize("threat", [Linf(3 / 255), Linf(2.5 / 255), L2(0.12)])
def test_uint8_says_which_still_fool(threat, tmp_path):
    """By hand, in levels: a radius of 2.5 levels does not hold what rounding moves to 3."""
    model, x, y = problem()
    suite = {"pgd": SUITE["pgd"], "r_fgsm": SUITE["r_fgsm"]}
    kept(tmp_path / "levels", "uint8", threat=threat, suite=suite)
    kept(tmp_path / "floats", "float32", threat=threat, suite=suite)
    levels, floats = (adversarial_examples(tmp_path / name) for name in ("levels", "floats"))
    flags: list[bool] = []
    for attack, part in levels.items():
        torch.testing.assert_close(part.images.float(), floats[attack].images * 255, rtol=0, atol=0.5 + 1e-4)
        rows = (part.index - 50) // 3
        with torch.no_grad():
            wrong = model.eval()(part.images.float() / 255).argmax(1) != y[rows]
        moved = part.images.int() - x[rows].int()
        if isinstance(threat, Linf):
            inside = moved.abs().amax((1, 2, 3)) <= 255 * float(threat.eps) + 1e-4
        else:
            inside = moved.double().square().sum((1, 2, 3)).sqrt() <= 255 * float(threat.eps) * (1 + 1e-6)
        assert part.fools is not None
        assert part.fools.tolist() == (wrong & inside).tolist()
        flags += part.fools.tolist()
    if threat == Linf(3 / 255):
        assert np.mean(flags) > 0.5
    else:
        assert np.mean(flags) < 0.9


def test_what_a_radius_of_whole_levels_loses_by_rounding_is_said(tmp_path):
    """A boundary at 127.2 levels: what lies at 127.4 is rounded back across it, what lies at 127.7 is not."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v = (x.mean((1, 2, 3)) - 127.2 / 255) * 100
            return torch.stack([torch.zeros_like(v), v], 1)

    x = torch.full((3, 1, 2, 2), 126, dtype=torch.uint8)
    goal = torch.tensor([127.7, 127.4, 127.1])

    def lift(model: nn.Module, x: Tensor, y: Tensor, *, noise) -> Tensor:
        return (goal[noise.rows] / 255).reshape(-1, 1, 1, 1).expand_as(x).clone()

    evaluation = evaluate(
        Mean(), x, torch.zeros(3).long(), threat=Linf(2 / 255), suite={"lift": lift}, folder=tmp_path, keep="uint8"
    )
    assert broken(evaluation, "lift") == [0, 1]
    part = adversarial_examples(tmp_path)["lift"]
    assert part.images[:, 0, 0, 0].tolist() == [128, 127]
    assert part.fools is not None
    assert part.fools.tolist() == [True, False]
    narrow = evaluate(
        Mean(),
        x,
        torch.zeros(3).long(),
        threat=Linf(1.8 / 255),
        suite={"lift": lambda model, x, y: x + 1.75 / 255},
        folder=tmp_path / "narrow",
        keep="uint8",
    )
    assert broken(narrow, "lift") == [0, 1, 2]
    part = adversarial_examples(tmp_path / "narrow")["lift"]
    assert part.fools is not None
    assert part.fools.tolist() == [False, False, False], "128 is misclassified, but lies outside the ball of 1.8 levels"


def test_nothing_is_kept_unasked_or_where_nothing_broke(tmp_path):
    evaluate(*problem(), threat=Linf(3 / 255), suite=SUITE, folder=tmp_path / "unasked")
    assert not (tmp_path / "unasked" / "adversarial").exists()
    assert adversarial_examples(tmp_path / "unasked") == {}
    kept(tmp_path / "none", "uint8", suite={"nothing": SUITE["nothing"]})
    assert adversarial_examples(tmp_path / "none") == {}, "what is wrong without an attack is no adversarial example"


@pytest.mark.parametrize("damage", [b"", b"\x10\0\0\0\0\0\0\0{", b"\x80\x04K\x01."])
def test_a_damaged_file_is_named(damage, tmp_path):
    kept(tmp_path, "uint8")
    path = next(iter(sorted((tmp_path / "adversarial").iterdir())))
    path.write_bytes(damage)
    with pytest.raises(files.Damaged, match=f"CK321 .*{path.name}"):
        adversarial_examples(tmp_path)
