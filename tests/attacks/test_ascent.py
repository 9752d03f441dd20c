"""The ascent against optima known in closed form, against a loop by hand, and against its own special cases."""

import pytest
import torch
from torch import Tensor

from conftest import few
from oracles import EPS, linear_problem
from toughen.attacks import AttackSpec, ascend, bim, fgsm, pgd, r_fgsm
from toughen.evaluation.result import describe
from toughen.losses import cross_entropy, kl, margin, targeted
from toughen.noise import Stream, fixed
from toughen.threat import L2, Linf, Threat

EXACT = {"rtol": 0, "atol": 1e-9}
BALLS = [Linf(0.1), L2(0.4)]
ATTACKS = {
    "fgsm": fgsm,
    "bim": bim,
    "r_fgsm": r_fgsm,
    "pgd": lambda *args, **kwargs: pgd(*args, steps=40, step_size=kwargs["threat"].eps, **kwargs),
    "pgd-restarts": lambda *args, **kwargs: pgd(*args, steps=40, step_size=0.4, restarts=3, **kwargs),
}


def unit(v: Tensor) -> Tensor:
    return v / v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", cross_entropy])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "pgd-restarts"])
def test_linf_optimum_of_a_linear_model(linear, inner, y, name, loss):
    found = ATTACKS[name](linear, inner, y, threat=Linf(0.1), loss=loss)
    torch.testing.assert_close(found, inner + 0.1 * linear.uphill(y).sign(), **EXACT)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "pgd-restarts"])
def test_l2_optimum_of_a_linear_model(linear, inner, y, name, loss):
    found = ATTACKS[name](linear, inner, y, threat=L2(0.25), loss=loss)
    torch.testing.assert_close(found, inner + 0.25 * unit(linear.uphill(y)), **EXACT)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "pgd-restarts"])
def test_linf_optimum_in_the_box(linear, x, y, name):
    found = ATTACKS[name](linear, x, y, threat=Linf(0.3))
    free = x + 0.3 * linear.uphill(y).sign()
    assert (free < 0).any()
    assert (free > 1).any()
    torch.testing.assert_close(found, free.clamp(0, 1), **EXACT)


def test_default_steps_reach_the_linf_optimum_from_anywhere(linear, x, y):
    """2.5 eps / steps crosses the ball; steps of 1.9 eps in all would not."""
    optimum = (x + 0.1 * linear.uphill(y).sign()).clamp(0, 1)
    for steps in (1, 3, 10, 20):
        torch.testing.assert_close(pgd(linear, x, y, threat=Linf(0.1), steps=steps), optimum, **EXACT)
    torch.testing.assert_close(pgd(linear, x, y, threat=Linf(0.1)), optimum, **EXACT)
    short = pgd(linear, x, y, threat=Linf(0.1), steps=10, step_size=0.019)
    assert (short - optimum).abs().max() > 1e-3


def test_soft_labels_are_ascended_too(linear, inner, y):
    soft = torch.nn.functional.one_hot(y, 2).double() * 0.8 + 0.1
    for threat in BALLS:
        found = fgsm(linear, inner, soft, threat=threat)
        assert found.dtype == torch.float64
        p = linear(inner).softmax(1)
        grad = torch.einsum("nk,kd->nd", p - soft, linear.weight).detach().reshape(inner.shape)
        torch.testing.assert_close(found, inner + threat.eps * threat.steepest(grad), **EXACT)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_a_targeted_loss_reaches_the_targets_optimum(linear, inner, y, name):
    target = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    found = ATTACKS[name](linear, inner, y, threat=Linf(0.1), loss=targeted(cross_entropy, target))
    best = inner - 0.1 * linear.uphill(target).sign()
    torch.testing.assert_close(found, best, **EXACT)
    gap = linear.uphill(target).flatten(1)
    logit = (gap * inner.flatten(1)).sum(1) + (linear.bias[1 - target] - linear.bias[target]) - 0.1 * gap.abs().sum(1)
    torch.testing.assert_close(cross_entropy(linear(found), target), torch.log1p(logit.exp()), **EXACT)


@pytest.mark.parametrize("eps", [0.1, 1e-9])
def test_kl_goes_on_in_the_direction_of_its_start(linear, inner, y, eps):
    """On two classes KL from the clean probabilities rises away from x on either side, never back."""
    noise = fixed(8)
    start = Linf(eps).sample(inner, noise.child("pgd", 0))
    side = (start * linear.uphill(y)).flatten(1).sum(1).sign().reshape(-1, 1, 1, 1)
    assert side.unique().tolist() == [-1, 1]
    found = pgd(linear, inner, y, threat=Linf(eps), loss="kl", noise=noise, steps=10)
    torch.testing.assert_close(found, inner + eps * side * linear.uphill(y).sign(), rtol=0, atol=1e-6 * eps)


def loop(model, x: Tensor, y: Tensor, start: Tensor, threat: Threat, steps: int, size: float) -> Tensor:
    """Projected ascent written out once more, one example at a time."""
    rows = []
    for image, label, at in zip(x, y, start, strict=True):
        for _ in range(steps):
            at = at.clone().requires_grad_()
            (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(at[None]), label[None]), at)
            delta = at.detach() + size * (g.sign() if threat.norm == "linf" else g / g.norm()) - image
            eps = float(threat.eps)
            delta = delta.clamp(-eps, eps) if threat.norm == "linf" else delta * min(1.0, eps / delta.norm().item())
            at = (image + delta).clamp(0, 1)
        rows.append(at)
    return torch.stack(rows)


@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_pgd_is_the_loop_by_hand(smooth, x, y, threat):
    noise = Stream(("by hand",), torch.arange(8) + 100)
    start = (x + threat.sample(x, noise.child("pgd", 0))).clamp(0, 1)
    expected = loop(smooth, x, y, start, threat, 7, 0.05)
    found = pgd(smooth, x, y, threat=threat, steps=7, step_size=0.05, noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    without = pgd(smooth, x, y, threat=threat, steps=7, step_size=0.05, random_start=False)
    torch.testing.assert_close(without, loop(smooth, x, y, x, threat, 7, 0.05), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("threat", [*BALLS, Linf(torch.linspace(0, 0.2, 8))], ids=["linf", "l2", "each"])
def test_fgsm_is_pgd_with_one_step_from_the_clean_image(smooth, x, y, threat, loss, dtype):
    model, images = smooth.to(dtype), x.to(dtype)
    one = pgd(model, images, y, threat=threat, steps=1, random_start=False, step_size=threat.eps, loss=loss)
    assert torch.equal(fgsm(model, images, y, threat=threat, loss=loss), one)
    assert torch.equal(bim(model, images, y, threat=threat, steps=1, loss=loss), one)
    assert not torch.equal(one, images)


@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_bim_is_pgd_without_a_random_start(smooth, x, y, threat):
    expected = pgd(smooth, x, y, threat=threat, steps=4, random_start=False, step_size=threat.eps / 4)
    assert torch.equal(bim(smooth, x, y, threat=threat, steps=4), expected)
    other = pgd(smooth, x, y, threat=threat, steps=4, random_start=False, step_size=0.07)
    assert torch.equal(bim(smooth, x, y, threat=threat, steps=4, step_size=0.07), other)
    assert not torch.equal(expected, other)


def direction(threat: Threat, v: Tensor) -> Tensor:
    return v.sign() if threat.norm == "linf" else unit(v)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_r_fgsm_by_hand(smooth, inner, y, threat, share):
    noise, eps = Stream(("by hand",), torch.arange(8)), float(threat.eps)
    draw = noise.child("r_fgsm").normal(tuple(inner.shape[1:]), dtype=inner.dtype)
    start = (inner + share * eps * direction(threat, draw)).requires_grad_()
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(smooth(start), y, reduction="sum"), start)
    expected = start.detach() + (1 - share) * eps * direction(threat, grad)
    found = r_fgsm(smooth, inner, y, threat=threat, random_share=share, noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    if share == 0:
        assert torch.equal(found, fgsm(smooth, inner, y, threat=threat))
    if share == 0.5:
        assert torch.equal(found, r_fgsm(smooth, inner, y, threat=threat, noise=noise))


def test_r_fgsm_clips_its_start(linear, y):
    """From a black image, pixels that the random step made negative start at 0 and can only rise."""
    black, noise = torch.zeros(8, 2, 4, 4, dtype=torch.float64), fixed(8)
    draw = noise.child("r_fgsm").normal((2, 4, 4), dtype=torch.float64)
    expected = ((0.1 * draw.sign()).clamp(0, 1) + 0.3 * linear.uphill(y).sign()).clamp(0, 1)
    found = r_fgsm(linear, black, y, threat=Linf(0.4), random_share=0.25, noise=noise)
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_random_start_is_clipped_to_the_box(linear, y):
    """Seen by the model, whose first gradient is taken there, and through a loss without one, from which none moves."""
    black, noise, seen = torch.zeros(8, 2, 4, 4, dtype=torch.float64), fixed(8), []
    linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    found = pgd(linear, black, y, threat=Linf(0.4), loss=lambda logits, y: 0 * logits.sum(1), steps=2, noise=noise)
    expected = Linf(0.4).sample(black, noise.child("pgd", 0)).clamp(0, 1)
    assert torch.equal(seen[0], expected)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("ball", [Linf, L2])
@pytest.mark.parametrize("name", ["fgsm", "bim", "r_fgsm", "pgd", "steps", "restarts"])
def test_a_radius_per_example_is_each_example_alone(smooth, x, y, ball, name):
    eps = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 0.1], dtype=torch.float64)
    attack = {
        **ATTACKS,
        "pgd": lambda *args, **kwargs: pgd(*args, steps=5, **kwargs),
        "steps": lambda *args, **kwargs: pgd(*args, steps=5, step_size=kwargs["threat"].eps / 2, **kwargs),
        "restarts": lambda *args, **kwargs: pgd(*args, steps=3, restarts=3, **kwargs),
    }[name]
    noise = fixed(8)
    options = {"noise": noise} if name not in ("fgsm", "bim") else {}
    together = attack(smooth, x, y, threat=ball(eps), **options)
    # 0 is no length of a step, so the first example, which has no room, is left out of that case
    for i, radius in list(enumerate(eps.tolist()))[1:]:
        row = {key: value[i : i + 1] for key, value in options.items()}
        alone = attack(smooth, x[i : i + 1], y[i : i + 1], threat=ball(radius), **row)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(together[0], x[0], rtol=0, atol=0)


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_length_per_example_is_each_example_alone(smooth, x, y, restarts):
    length, noise = torch.linspace(0.01, 0.2, 8).double(), fixed(8)
    settings = {"threat": Linf(0.2), "steps": 3, "restarts": restarts}
    together = pgd(smooth, x, y, step_size=length, noise=noise, **settings)
    for i, size in enumerate(length.tolist()):
        part = slice(i, i + 1)
        alone = pgd(smooth, x[part], y[part], step_size=size, noise=noise[part], **settings)
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("restarts", [1, 4])
@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_an_example_does_not_depend_on_its_batch_mates(smooth, x, y, threat, loss, restarts):
    noise, order = Stream(("run",), 10 + torch.arange(8)), torch.tensor([5, 2, 7, 0])
    settings = {"threat": threat, "steps": 4, "loss": loss, "restarts": restarts}
    whole = pgd(smooth, x, y, noise=noise, **settings)
    part = pgd(smooth, x[order], y[order], noise=noise[order], **settings)
    torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-12)
    assert not torch.equal(pgd(smooth, x, y, noise=noise.child(1), **settings), whole)


def test_ascend_leaves_after_no_step_with_its_start(linear, x, y):
    start = x / 2
    found = ascend(
        linear, x, lambda logits, rows: margin(logits, y[rows]), threat=Linf(1), steps=0, step_size=0.1, start=start
    )
    assert torch.equal(found, start)


def test_ascend_brings_a_start_from_outside_into_the_ball(linear, inner, y):
    found = ascend(
        linear,
        inner,
        lambda logits, rows: margin(logits, y[rows]),
        threat=Linf(0.1),
        steps=1,
        step_size=1e-3,
        start=inner + 0.2,
    )
    torch.testing.assert_close(found, inner + 0.1, **EXACT)


def test_ascend_takes_any_objective_of_the_logits(linear, inner):
    p = torch.tensor([0.9, 0.1], dtype=torch.float64).expand(8, 2)
    found = ascend(
        linear,
        inner,
        lambda logits, rows: -kl(logits, p[rows]),
        threat=L2(0.2),
        steps=1,
        step_size=0.2,
        start=inner.clone(),
    )
    grad = ((p - linear(inner).softmax(1)) @ linear.weight).detach().reshape(inner.shape)
    torch.testing.assert_close(found, inner + 0.2 * unit(grad), **EXACT)


# --- strength, against the truth about linear models


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_pgd_breaks_nearly_all_that_can_be_broken(seed):
    """At least 95.9 % of it in 40 steps, the best of four libraries; by default no less than FGSM."""
    problem, threat = linear_problem(seed), Linf(EPS)
    breakable = problem.breakable()

    def broken(attack, **settings) -> int:
        found = problem.model(attack(problem.model, problem.x, problem.y, threat=threat, **settings)).argmax(1)
        assert not (found != problem.y)[~breakable].any()
        return int((found != problem.y).sum())

    assert broken(pgd) >= broken(fgsm)
    assert broken(pgd, steps=40) >= 0.959 * breakable.sum()
    assert broken(pgd, steps=40, loss="margin") >= broken(pgd, steps=40)


@pytest.mark.parametrize("loss", ["margin", "margin-0", "margin-50", "dlr"])
def test_every_loss_breaks_what_a_linear_model_lets_it(loss):
    problem = linear_problem(0, n=100)
    found = pgd(problem.model, problem.x, problem.y, threat=Linf(EPS), loss=loss)
    broken = problem.model(found).argmax(1) != problem.y
    assert not broken[~problem.breakable()].any()
    assert broken.sum() >= 0.95 * problem.breakable().sum()


def test_dlr_needs_three_classes(linear, x, y):
    with pytest.raises(ValueError, match="loss dlr needs at least 3 classes, the model has 2; use loss: margin"):
        pgd(linear, x, y, threat=Linf(0.1), loss="dlr")


def test_the_default_step_is_madrys_up_to_twenty_steps(smooth, x, y):
    for steps, share in ((5, 2.5 / 5), (20, 2.5 / 20), (25, 1 / 8)):
        expected = pgd(smooth, x, y, threat=Linf(0.25), steps=steps, step_size=0.25 * share)
        assert torch.equal(pgd(smooth, x, y, threat=Linf(0.25), steps=steps), expected)


# --- a step size that is a function of the step


def falling(step: int) -> float:
    return 0.1 / (1 + step)


def test_a_function_of_the_step_by_hand(smooth, x, y):
    at, settings = x, {"threat": Linf(0.15), "random_start": False}
    for step in range(3):
        moved = pgd(smooth, at, y, threat=Linf(1), steps=1, random_start=False, step_size=falling(step))
        at = (x + (moved - x).clamp(-0.15, 0.15)).clamp(0, 1)
    found = pgd(smooth, x, y, steps=3, step_size=falling, **settings)
    torch.testing.assert_close(found, at, rtol=0, atol=1e-12)
    assert not torch.equal(found, pgd(smooth, x, y, steps=3, step_size=0.1, **settings))
    assert torch.equal(bim(smooth, x, y, threat=Linf(0.15), steps=3, step_size=falling), found)


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_function_of_the_step_may_give_a_length_per_example(smooth, x, restarts):
    y, lengths, noise = smooth(x).argmax(1), torch.linspace(0.01, 0.2, 8).double(), fixed(8)
    settings = {"threat": Linf(0.05), "steps": 3, "restarts": restarts}
    together = pgd(smooth, x, y, step_size=lambda step: lengths / (1 + step), noise=noise, **settings)
    for i in range(8):
        row, size = slice(i, i + 1), lengths[i].item()
        alone = pgd(smooth, x[row], y[row], step_size=lambda k, s=size: s / (1 + k), noise=noise[row], **settings)
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (lambda step: "fast", "step_size gives 'fast' at step 0; it must give a number or a tensor"),
        (lambda step: None, "step_size gives None at step 0"),
        (lambda step: torch.ones(7), r"step_size gives a tensor \(7,\) at step 0; .* a tensor \(8,\)"),
        (lambda step: 1 - step, "step_size gives -1 at step 2; it must not be negative, and be finite"),
        (lambda step: torch.full((8,), float("nan")), "it must not be negative, and be finite"),
    ],
)
def test_functions_of_the_step_that_are_refused(linear, x, y, schedule, sentence):
    with pytest.raises(ValueError, match=sentence):
        pgd(linear, x, y, threat=Linf(0.1), steps=4, step_size=schedule)


def test_a_record_names_the_function_of_the_step(smooth, x, y):
    spec = AttackSpec(name="pgd", steps=3, step_size=falling)
    assert describe(spec)["step_size"] == "falling"
    expected = pgd(smooth, x, y, threat=Linf(0.1), steps=3, step_size=falling)
    assert torch.equal(spec(smooth, x, y, threat=Linf(0.1)), expected)
