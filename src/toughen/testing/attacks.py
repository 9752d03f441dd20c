"""What every attack promises; `toughen.testing.check_attack` looks at it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from toughen.attacks import ATTACKS, AttackSpec
from toughen.attacks.contract import GIVEN, Attack
from toughen.models.batched import Batched
from toughen.noise import Stream, fixed
from toughen.settings import settings_of
from toughen.testing import toys
from toughen.testing.attack_under_test import BALLS, AttackUnderTest, Strength
from toughen.testing.promises import Promise, PromiseSuite, expect, refusal, seed_everything
from toughen.threat import L2, Linf, Threat

LINEAR_BALLS: dict[str, Threat] = {"linf": Linf(0.05), "l2": L2(0.25)}
"""By norm, the ball in which attacks on the linear model are compared: FGSM breaks a third of the images or more."""

AT_LEAST_ONE = ("steps", "restarts", "queries")
"""Settings which, whatever attack has one of that name, count something that it cannot do without."""

POSITIVE = ("step_size",)
"""Settings of which 0 or less, or no number, makes no sense."""

attacks = PromiseSuite()


def _left(attack: AttackUnderTest, *kinds: str) -> None:
    found = [attack.footprint[kind] for kind in kinds if kind in attack.footprint]
    expect(not found, " and ".join(found))


def _ran(attack: AttackUnderTest, dtype: torch.dtype, threat: Threat) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    model, x, y = toys.normed(dtype), toys.images(dtype), toys.labels()
    key = dtype, threat
    if key not in attack.runs:
        attack.runs[key] = attack(model, x.clone(), y.clone(), threat)
    return model, x, y, attack.runs[key]


def _everywhere(attack: AttackUnderTest) -> list[tuple[Threat, torch.dtype]]:
    return [(ball, dtype) for ball in attack.balls for dtype in (torch.float32, torch.float64)]


def _apart(a: Tensor, b: Tensor) -> str:
    """By how much two batches of examples differ, as text."""
    if a.shape != b.shape:
        return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    rows = (a != b).flatten(1).any(1).nonzero().flatten().tolist()
    return f"examples {rows} differ by up to {(a - b).abs().max():.2g}"


@attacks.promise("give norms=('l2',) or norms=('linf',) where it is made for one of them")
def norms(attack: AttackUnderTest) -> None:
    """It runs in every ball that it is checked in."""
    for ball in attack.balls:
        _ran(attack, torch.float32, ball)


@attacks.promise("return a detached tensor like x, and look for divisions by zero")
def output(attack: AttackUnderTest) -> None:
    """What is returned has the shape, type and device of x, is finite and asks for no gradient."""
    for ball, dtype in _everywhere(attack):
        _, x, _, x_adv = _ran(attack, dtype, ball)
        expect(isinstance(x_adv, Tensor), f"it returned a {type(x_adv).__name__}")
        here, there = ((t.dtype, tuple(t.shape), t.device) for t in (x, x_adv))
        expect(here == there, f"for images {here} it returned {there}")
        expect(x_adv.isfinite().all(), f"it returned values that are not finite in the ball {ball}")
        expect(not x_adv.requires_grad, "what it returned asks for a gradient")


@attacks.promise("end with x_adv.clamp(0, 1)")
def box(attack: AttackUnderTest) -> None:
    """Every pixel is in [0, 1]."""
    for ball, dtype in _everywhere(attack):
        *_, x_adv = _ran(attack, dtype, ball)
        low, high = float(x_adv.min()), float(x_adv.max())
        expect(low >= 0 and high <= 1, f"pixels are in [{low:.6g}, {high:.6g}] in the ball {ball}")


@attacks.promise(
    "project with threat.project(delta) after every step, which knows a radius for each example too",
    lambda attack: not attack.minimal_norm,
)
def ball(attack: AttackUnderTest) -> None:
    """No perturbation is longer than the radius, be it one for all or one for each example."""
    for threat, dtype in _everywhere(attack):
        _, x, _, x_adv = _ran(attack, dtype, threat)
        size = type(threat)(0).size(x_adv.double() - x.double())
        eps = torch.as_tensor(threat.eps).double().expand(len(x))
        allowed = eps * (1 if threat.norm == "linf" else 1 + 1e-6) + 6e-8
        worst = int((size - allowed).argmax())
        expect(
            bool((size <= allowed).all()),
            f"a perturbation of length {float(size[worst]):.6g} where the radius is {float(eps[worst]):.6g} ({threat})",
        )


@attacks.promise(
    "return x itself where nothing was found, as in torch.where(found, x_adv, x)", lambda attack: attack.minimal_norm
)
def adversarial_or_unchanged(attack: AttackUnderTest) -> None:
    """A minimal-norm attack returns what the model misclassifies, or the image itself."""
    for threat, dtype in _everywhere(attack):
        model, x, y, x_adv = _ran(attack, dtype, threat)
        bad = (model(x_adv).argmax(1) == y) & (x_adv != x).flatten(1).any(1)
        expect(not bad.any(), f"examples {bad.nonzero().flatten().tolist()} are changed but classified correctly")


@attacks.promise(
    "climb the loss of y, or give strength='none' where it has another aim",
    lambda attack: attack.strength != "none" or attack.minimal_norm,
)
def what_is_broken_stays_broken(attack: AttackUnderTest) -> None:
    """An image that is misclassified as it is does not come back classified correctly."""
    wrong = [2, 6]
    for threat in attack.balls:
        model, x, y, x_adv = _ran(attack, torch.float32, threat)
        healed = (model(x_adv).argmax(1) == y)[wrong]
        expect(not healed.any(), f"{int(healed.sum())} of 2 come back classified correctly in the ball {threat}")
        expect(
            not attack.minimal_norm or torch.equal(x_adv[wrong], x[wrong]),
            "such an image is its own nearest adversarial example, but it was changed",
        )


@attacks.promise("return x where the radius is 0", lambda attack: not attack.minimal_norm)
def radius_zero(attack: AttackUnderTest) -> None:
    """With a radius of 0 the images come back as they are, to the bit."""
    for ball in attack.balls:
        x = toys.images()
        x_adv = attack(toys.normed(), x.clone(), toys.labels(), ball.scaled(0))
        expect(torch.equal(x_adv, x), _apart(x_adv, x))


@attacks.promise("draw from noise.child(...), of which `fixed(len(x))` stands in for None, and from nothing else")
def same_again(attack: AttackUnderTest) -> None:
    """The same noise gives the same examples, whatever the global random state is."""
    noise = Stream(("contract",), torch.arange(8))
    for ball in attack.balls:
        found = []
        for seed, given in ((1, noise), (2, noise), (3, None), (4, fixed(8))):
            seed_everything(seed)
            found.append(attack(toys.normed(), toys.images(), toys.labels(), ball, given))
        expect(torch.equal(found[0], found[1]), _apart(found[0], found[1]))
        expect(torch.equal(found[2], found[3]), f"without noise: {_apart(found[2], found[3])}")


@attacks.promise("draw from `noise`, never from torch's, numpy's or Python's global generator, and seed none of them")
def random_state(attack: AttackUnderTest) -> None:
    """Global random states are left as they were found."""
    _left(attack, "random")


@attacks.promise("run the passes inside `with attacking(model, 'eval'):` (toughen.modes), which restores modes")
def modes(attack: AttackUnderTest) -> None:
    """Every module is left in the mode in which it was found."""
    _left(attack, "modes", "hooks")


@attacks.promise("run the passes inside `with attacking(model, 'eval'):` and take torch.autograd.grad of x alone")
def parameters(attack: AttackUnderTest) -> None:
    """The model's parameters, their gradients and their requires_grad are left as they were found."""
    _left(attack, "weights", "asks", "grads")


@attacks.promise("run the passes inside `with attacking(model, 'eval'):`, where BatchNorm's statistics stay")
def buffers(attack: AttackUnderTest) -> None:
    """The model's buffers, such as BatchNorm's running statistics, are left as they were found."""
    _left(attack, "buffers")


@attacks.promise("work on x.detach().clone(), and take torch.autograd.grad instead of backward()")
def inputs(attack: AttackUnderTest) -> None:
    """Images and labels are left as they were found, and no gradient is left on them."""
    _left(attack, "images", "labels", "x grad")


@attacks.promise("run the passes inside `with attacking(model, 'eval'):`", lambda attack: not attack.trains)
def training_mode(attack: AttackUnderTest) -> None:
    """A model in training mode is attacked as it is in inference mode."""
    for ball in attack.balls:
        found = [attack(model, toys.images(), toys.labels(), ball) for model in (toys.normed(), toys.normed().train())]
        expect(torch.equal(*found), f"{_apart(*found)} in the ball {ball}")


@attacks.promise("use `with torch.enable_grad():` around the passes, on x.detach()")
def gradient_mode(attack: AttackUnderTest) -> None:
    """It does not matter whether the caller is inside torch.no_grad(), or asks for gradients of x."""
    model, x, y = toys.normed(), toys.images(), toys.labels()
    for ball in attack.balls:
        expected = attack(model, x, y, ball)
        with torch.no_grad():
            inside = attack(model, x, y, ball)
        expect(torch.equal(inside, expected), f"inside torch.no_grad() {_apart(inside, expected)}")
        asking = attack(model, x.clone().requires_grad_(), y, ball)
        expect(torch.equal(asking, expected), f"where x asks for a gradient {_apart(asking, expected)}")
        expect(not asking.requires_grad, "where x asks for a gradient, so does what is returned")


@attacks.promise("let no reduction over the batch fail on an empty one")
def small_batches(attack: AttackUnderTest) -> None:
    """A batch may be empty, or have a single image."""
    x, y = toys.images(), toys.labels()
    for ball in attack.balls:
        for n in (0, 1):
            found = attack(toys.normed(), x[:n], y[:n], ball[:n], fixed(n))
            expect(found.shape == x[:n].shape, f"for {n} images it returned {tuple(found.shape)}")
            expect(found.dtype == x.dtype, f"for {n} images it returned {found.dtype}")


@attacks.promise("take hard labels by toughen.losses.hard(y), or raise a ValueError")
def probabilities(attack: AttackUnderTest) -> None:
    """Labels as probabilities (N, K) are the classes they stand for, or are refused."""
    model, x, y = toys.normed(torch.float64), toys.images(torch.float64), toys.labels()
    for ball in attack.balls:
        try:
            soft = attack(model, x, nn.functional.one_hot(y, toys.CLASSES).float(), ball)
        except ValueError:
            return
        expect(torch.allclose(soft, attack(model, x, y, ball), rtol=0, atol=1e-12), "other examples are found")


@attacks.promise("use reshape where you use view")
def layout(attack: AttackUnderTest) -> None:
    """Images whose channels lie last in memory are the same images."""
    model, x, y = toys.normed(torch.float64), toys.images(torch.float64), toys.labels()
    for ball in attack.balls:
        expected = attack(model, x, y, ball)
        found = attack(model, x.to(memory_format=torch.channels_last), y, ball)
        expect(torch.allclose(found, expected, rtol=0, atol=1e-10), _apart(found, expected))


@attacks.promise(
    "work row by row: no mean over the batch, and draws from noise.child(...)[rows], which are each row's own"
)
def batch_mates(attack: AttackUnderTest) -> None:
    """An example's result does not depend on its batch mates or their order, to the bit in float64."""
    model, noise = toys.Rowwise(), Stream(("run",), 10 + torch.arange(8))
    x = toys.images(torch.float64, toys.ODD_SHAPE)
    y = model(x).argmax(1)
    y[[2, 6]] = (y[[2, 6]] + 1) % toys.CLASSES
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    parts = [slice(0, 3), slice(3, 4), slice(4, 8)]
    for ball in attack.balls:
        whole = attack(model, x, y, ball, noise)
        again = attack(model, x[order], y[order], ball[order], noise[order])
        expect(torch.equal(again, whole[order]), f"in another order {_apart(again, whole[order])} ({ball})")
        found = torch.cat([attack(model, x[part], y[part], ball[part], noise[part]) for part in parts])
        expect(torch.equal(found, whole), f"in three parts {_apart(found, whole)} ({ball})")


@attacks.promise("call the model as a function of images, by toughen.models.batched.predict and value_and_grad")
def in_pieces(attack: AttackUnderTest) -> None:
    """A model that takes three images in a pass (toughen.models.batched.Batched) is attacked in the same way."""
    model, x = toys.Rowwise(), toys.images(torch.float64, toys.ODD_SHAPE)
    y = (model(x).argmax(1) + (torch.arange(8) == 2)) % toys.CLASSES
    for ball in attack.balls:
        whole, found = attack(model, x, y, ball), attack(Batched(model, 3), x, y, ball)
        expect(torch.equal(found, whole), _apart(found, whole))


@attacks.promise("put @attack (toughen.attacks) above the function: it refuses these")
def bad_input(attack: AttackUnderTest) -> None:
    """Images and labels that cannot be meant are refused with a sentence."""
    model, x, y, ball = toys.normed(), toys.images(), toys.labels(), attack.balls[0]
    holed = x.clone()
    holed[0, 0, 0, 0] = torch.nan
    images = {
        "images in [0, 255]": x * 255,
        "normalised images": (x - 0.5) / 0.25,
        "uint8 images": (x * 255).byte(),
        "a single image (C, H, W)": x[0],
        "images with NaN": holed,
    }
    for what, bad in images.items():
        refusal(lambda bad=bad: attack(model, bad, y, ball), what)
    for what, bad in {"7 labels for 8 images": y[:7], "labels in floats": y.float(), "a class of 9": y + 7}.items():
        refusal(lambda bad=bad: attack(model, x, bad, ball), what)


@attacks.promise(
    "put @attack (toughen.attacks) above the function and annotate its settings, like steps: Count (toughen.settings)"
)
def settings(attack: AttackUnderTest) -> None:
    """Settings that are unknown or make no sense are refused with a sentence."""
    model, x, y, ball = toys.normed(), toys.images(), toys.labels(), attack.balls[0]

    def try_out(name: str, value: object, said: str) -> None:
        trial = AttackUnderTest(attack.function, attack.settings | {name: value}, attack.norms, attack.strength)
        refusal(lambda: trial(model, x, y, ball), said)

    try_out("no_such_setting", 1, "the unknown setting no_such_setting=1")
    for name in settings_of(attack.function, GIVEN).model_fields:
        try_out(name, object(), f"{name}=object()")
        if name in AT_LEAST_ONE:
            try_out(name, 0, f"{name}=0")
        if name in POSITIVE:
            for value in (-0.1, float("nan")):
                try_out(name, value, f"{name}={value}")


def _on_linear(attack: AttackUnderTest, norm: str) -> tuple[toys.Linear, Tensor, Tensor, Tensor]:
    model, x = toys.Linear(), toys.inner_images()
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, x, y, attack(model, x, y, LINEAR_BALLS[norm])


def _broken(model: nn.Module, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((model(x).argmax(1) != y).sum())


@attacks.promise(
    "ascend the loss of y over the whole ball (descending and half a radius are the usual slips), or give "
    "strength='search' where it takes no gradients",
    lambda attack: attack.strength == "gradient" and not attack.minimal_norm,
)
def as_strong_as_one_step(attack: AttackUnderTest) -> None:
    """On a linear model it breaks at least two in three of the images that FGSM breaks."""
    for norm in attack.norms:
        model, x, y, x_adv = _on_linear(attack, norm)
        own, one = _broken(model, x_adv, y), _broken(model, model.one_step(x, y, LINEAR_BALLS[norm]), y)
        expect(3 * own >= 2 * one, f"it breaks {own} of {len(x)} images in {LINEAR_BALLS[norm]}, FGSM {one}")


@attacks.promise(
    "keep the worst point that was seen, or give strength='none' where it does not look for misclassified images",
    lambda attack: attack.strength == "search" and not attack.minimal_norm,
)
def stronger_than_chance(attack: AttackUnderTest) -> None:
    """On a linear model it breaks more images than a random point of the ball does."""
    for norm in attack.norms:
        model, x, y, x_adv = _on_linear(attack, norm)
        start = (x + LINEAR_BALLS[norm].sample(x, fixed(len(x)))).clamp(0, 1)
        own, chance = _broken(model, x_adv, y), _broken(model, start, y)
        expect(own > chance, f"it breaks {own} of {len(x)} images in {LINEAR_BALLS[norm]}, a random point {chance}")


@attacks.promise("go to the nearest boundary, not to any", lambda attack: attack.minimal_norm)
def near(attack: AttackUnderTest) -> None:
    """On a linear model half of what it finds lies within twice the true distance, and nothing nearer than that."""
    for norm in attack.norms:
        model, x, _, x_adv = _on_linear(attack, norm)
        ratio = LINEAR_BALLS[norm].size(x_adv - x) / model.distance(x, LINEAR_BALLS[norm])
        found = (x_adv != x).flatten(1).any(1)
        expect(2 * found.sum() >= len(x), f"it finds examples for {int(found.sum())} of {len(x)} images in {norm}")
        expect(
            ratio[found].median() <= 2,
            f"in {norm} its examples are {float(ratio[found].median()):.2f} times as far as need be",
        )


def attack_promises(
    attack: Attack | AttackSpec,
    *,
    settings: Mapping[str, Any] | None = None,
    norms: Sequence[str] = ("linf", "l2"),
    strength: Strength = "gradient",
) -> list[Promise]:
    """What `check_attack` looks at, one by one; see there for the arguments."""
    if isinstance(attack, AttackSpec):
        name, function, own = attack.name, ATTACKS[attack.name], attack.settings
    else:
        name, function, own = _name(attack), attack, {}
    if unknown := [norm for norm in norms if norm not in BALLS]:
        raise ValueError(f"norms are {unknown}; allowed: {', '.join(BALLS)}")
    if strength not in get_args(Strength):
        raise ValueError(f"strength is {strength!r}; allowed: {', '.join(get_args(Strength))}")
    return attacks.of(AttackUnderTest(function, {**own, **(settings or {})}, tuple(norms), strength), name)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", None) or _name(getattr(function, "func", type(function)))
