"""Models as strangers write them, through every verb: the figures of the same network in plain form, or a sentence."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toughen
from toughen.attacks import AttackSpec, apgd, deepfool, pgd, square
from toughen.evaluation import check, corruption_accuracy, evaluate
from toughen.evaluation.audit.audit import audit
from toughen.models.adapted import adapt
from toughen.models.hashes import hash_model
from toughen.models.prepared import prepare
from toughen.threat import L2, Linf

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*quantiz"),
]

K, N, BALL = 4, 24, Linf(0.05)
SUITE = {
    "pgd": AttackSpec(name="pgd", steps=3),
    "square": AttackSpec(name="square", queries=10),
}


class Plain(nn.Module):
    """The network of all cases: a map of k x k, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3 * 6 * 6, K)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).flatten(1))


class View(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return self.head(h.view(h.size(0), -1))


class InPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        # Bounds that no image is on: there `clamp` has no gradient from torch 2.14 on.
        return super().forward(x.mul_(1.0).clamp_(-1, 2))


class Tupled(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class Mapped(Plain):
    def forward(self, x: Tensor) -> Any:
        return {"loss": None, "logits": super().forward(x)}


class Named(Plain):
    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x))


X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def made(kind: type[Plain]) -> Any:
    """A network of this kind, always with the same weights, to which no class is dearer than others."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = kind().eval()
        model.head.bias -= model.head(model.features(X).flatten(1)).mean(0)
    return model


def scripted() -> Any:
    return torch.jit.script(made(Plain))


def exported() -> Any:
    """What torch.export makes of it, which knows no modes."""
    example, any_number = (torch.rand(2, 1, 8, 8),), ({0: torch.export.Dim("n")},)
    return torch.export.export(made(Plain), example, dynamic_shapes=any_number).module()


RIGHT: dict[str, Callable[[], Any]] = {
    "view after a convolution": lambda: made(View),
    "first operation in place": lambda: made(InPlace),
    "a tuple": lambda: made(Tupled),
    "a mapping": lambda: made(Mapped),
    "an object with logits": lambda: made(Named),
    "torch.jit.script": scripted,
    "torch.jit.trace": lambda: torch.jit.trace(made(Plain), torch.rand(2, 1, 8, 8)),
    "torch.jit.freeze": lambda: torch.jit.freeze(scripted()),
    "torch.export": exported,
    "torch.fx": lambda: torch.fx.symbolic_trace(made(Plain)),
    "DataParallel": lambda: nn.DataParallel(made(View)),
    "an ensemble of one": lambda: toughen.Ensemble([made(Tupled)]),
    "a plain function": lambda: made(Plain).forward,
}


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return X.clone(), made(Plain)(X).argmax(1)


def plainly(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return attacked(made(Plain), x, y)


def attacked(model: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    before = x.clone()
    found = {
        "pgd": pgd(model, x, y, threat=BALL, steps=3),
        "apgd": apgd(model, x, y, threat=BALL, steps=4),
        "deepfool": deepfool(model, x, y, threat=L2(0.5), steps=3),
        "square": square(model, x, y, threat=L2(0.5), queries=10),
    }
    assert torch.equal(x, before)
    return found


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
def test_every_verb_gives_the_plain_networks_figures(make: Callable[[], Any], images: tuple[Tensor, Tensor]):
    x, y = images
    expected = evaluate(made(Plain), x, y, threat=BALL, suite=SUITE, audit=False)
    assert 0 < expected.robust_accuracy < 1
    before = x.clone()
    found = evaluate(make(), x, y, threat=BALL, suite=SUITE)
    assert torch.equal(x, before)
    for column in ("prediction", "survived", "index"):
        assert getattr(found.outcomes, column).tolist() == getattr(expected.outcomes, column).tolist()
    assert not found.unreliable or found.audit is None or found.audit.codes == ("EV225",)
    for name, x_adv in attacked(make(), x, y).items():
        torch.testing.assert_close(x_adv, plainly(x, y)[name], rtol=1e-5, atol=1e-5)
    assert set(audit(make(), x, y, threat=BALL).codes) <= {"EV225"}
    assert {item.code for item in check(make(), x, y).items} <= {"", "EV225"}
    pixels = (255 * x).round().to(torch.uint8)
    given: dict[str, Any] = {"corruptions": ["contrast"], "severities": [1, 5]}
    found = corruption_accuracy(adapt(make()), pixels, y, **given).prediction
    assert found.tolist() == corruption_accuracy(made(Plain), pixels, y, **given).prediction.tolist()


def test_what_was_found_of_a_model_is_said(images: tuple[Tensor, Tensor]):
    x, y = images
    told = {name: evaluate(make(), x, y, threat=BALL, suite="pgd-1", audit=False).notes for name, make in RIGHT.items()}
    assert {name: notes for name, notes in told.items() if notes} == {
        "a tuple": ("the model returns a tuple, of which the first element was taken as its logits",),
        "a mapping": ("the model returns a mapping, of which `logits` was taken",),
        "an object with logits": ("the model returns an object, of which `logits` was taken",),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_attacked_in_float32(dtype: torch.dtype, images: tuple[Tensor, Tensor]):
    (x, y), model = images, made(Plain).to(dtype)
    for x_adv in attacked(model, x, y).values():
        assert x_adv.dtype == torch.float32
        assert x_adv.isfinite().all()
        assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert float((pgd(model, x, y, threat=BALL, steps=3) - x).abs().max()) <= 0.05 + 1e-7
    assert float((square(model, x, y, threat=L2(0.5), queries=20) - x).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-6
    found = evaluate(model, x, y, threat=BALL, suite=SUITE)
    with torch.no_grad():
        logits = model(x.to(dtype)).float()
    assert found.outcomes.prediction[:N].tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("attack", [pgd, square, deepfool])
def test_images_in_half_precision_are_refused(attack: Any, images: tuple[Tensor, Tensor]):
    x, y = images
    with pytest.raises(ValueError, match=r"images are torch\.float16, .* give x\.float\(\)"):
        attack(made(Plain), x.half(), y, threat=BALL)
    with pytest.raises(ValueError, match=r"images are torch\.bfloat16, .* give x\.float\(\)"):
        evaluate(made(Plain), x.bfloat16(), y, threat=BALL, suite="pgd-1")


class NoGrad(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Inference(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x)


class Numpy(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(super().forward(x).detach().numpy())


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(made(Plain), {nn.Linear})


WITHOUT_GRADIENT: dict[str, Callable[[], Any]] = {
    "no_grad": lambda: made(NoGrad),
    "inference_mode": lambda: made(Inference),
    "numpy": lambda: made(Numpy),
    "quantised": quantised,
    "a function without": lambda: torch.no_grad()(made(Plain)),
}


@pytest.mark.parametrize("make", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT)
def test_a_model_without_gradient_is_attacked_without(make: Callable[[], Any], images: tuple[Tensor, Tensor]):
    (x, _), says = images, r'no gradient of the model\'s output reaches the images.*suite="square"'
    with torch.no_grad():
        y = make()(x).argmax(1)
    with pytest.raises(ValueError, match=says):
        evaluate(make(), x, y, threat=BALL, suite="quick")
    for attack in (pgd, apgd, deepfool):
        with pytest.raises(ValueError, match=says):
            attack(make(), x, y, threat=BALL, steps=2)
    found = evaluate(make(), x, y, threat=BALL, suite={"square": AttackSpec(name="square", queries=20)})
    assert found.clean_accuracy == 1
    assert found.robust_accuracy < 1
    assert found.audit is not None
    assert "EV201" in found.audit.codes
    assert next(item.code for item in check(make(), x, y).items if item.what == "gradients") == "EV201"


def test_the_suite_that_the_sentence_names_is_there(images: tuple[Tensor, Tensor]):
    x, y = images
    found = evaluate(made(NoGrad), x[:2], y[:2], threat=Linf(1.0), suite="square", audit=False)
    assert list(found.outcomes.per_attack()) == ["clean", "square"]


def returning(answer: Callable[[Tensor], Any]) -> nn.Module:
    class Answers(Plain):
        def forward(self, x: Tensor) -> Any:
            return answer(super().forward(x))

    return made(Answers)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a mapping of other names": (lambda: returning(lambda z: {"out": z}), r"returns a mapping of out; .* name logits$"),
    "nothing": (lambda: returning(lambda z: None), r"the model returns NoneType; it must return logits"),
    "an empty tuple": (lambda: returning(lambda z: ()), r"the model returns a tuple of nothing"),
    "classes": (lambda: returning(lambda z: z.argmax(1)), r"returned torch\.int64 of shape .* it must return logits"),
    "one logit": (lambda: returning(lambda z: z[:, :1]), r"one number z for each image.* logits \[0, z\]"),
    "one logit, squeezed": (lambda: returning(lambda z: z[:, 0]), r"one number z for each image.* logits \[0, z\]"),
    "a list of models": (lambda: [made(Plain), made(Plain)], r"2 models in a list .* toughen\.Ensemble\(models\)"),
    "a text": (lambda: "resnet18", r"str is no model; give a torch\.nn\.Module or a function of images"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_classifier_is_one_sentence_everywhere(
    make: Callable[[], Any], says: str, images: tuple[Tensor, Tensor]
):
    x, y = images
    for verb in (
        lambda: evaluate(make(), x, y, threat=BALL, suite="pgd-1"),
        lambda: audit(make(), x, y, threat=BALL),
        lambda: pgd(make(), x, y, threat=BALL, steps=1),
        lambda: square(make(), x, y, threat=BALL, queries=3),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            verb()
        assert "\n" not in str(caught.value)
    if isinstance(make(), nn.Module):
        wrong = [item for item in check(make(), x, y).items if item.verdict == "wrong"]
        assert [item.code for item in wrong] == ["EV226"]


def test_a_threat_may_be_a_text(images: tuple[Tensor, Tensor]):
    x, y = images
    expected = evaluate(made(Plain), x, y, threat=BALL, suite="pgd-2", audit=False)
    found = evaluate(made(Plain), x, y, threat="linf:0.05", suite="pgd-2", audit=False)
    assert found.summary()["threat"] == "linf:0.05"
    assert found.outcomes.survived.tolist() == expected.outcomes.survived.tolist()
    assert audit(made(Plain), x, y, threat="linf:0.05") == audit(made(Plain), x, y, threat=BALL)
    same = pgd(made(Plain), x, y, threat="linf:0.05", steps=2)
    assert torch.equal(same, pgd(made(Plain), x, y, threat=BALL, steps=2))
    for wrong in ("linf", "max:0.1", 0.1, None):
        with pytest.raises(ValueError, match=r"is not a threat model; .*linf:8/255"):
            evaluate(made(Plain), x, y, threat=wrong, suite="pgd-2")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=r"is not a threat model; .*linf:8/255"):
            pgd(made(Plain), x, y, threat=wrong)
        with pytest.raises(ValueError, match=r"is not a threat model; .*linf:8/255"):
            audit(made(Plain), x, y, threat=wrong)  # pyright: ignore[reportArgumentType]


def test_an_ensemble_is_the_mean_of_probabilities(images: tuple[Tensor, Tensor]):
    x, _ = images
    models = [made(Plain), made(Mapped).double(), made(View)]
    with torch.no_grad():
        models[0].head.weight.mul_(2)
    several = toughen.Ensemble([models[0], models[2]])
    with torch.no_grad():
        mean = (models[0](x).softmax(1) + models[2](x).softmax(1)) / 2
        torch.testing.assert_close(several(x).exp(), mean)
    with pytest.raises(ValueError, match="no models in the ensemble"):
        toughen.Ensemble([])
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="the models have 3 and 4 classes"):
        toughen.Ensemble([models[0], other])(x)


def test_results_of_a_function_are_not_kept(images: tuple[Tensor, Tensor], tmp_path: Any):
    x, y = images
    with pytest.raises(ValueError, match=r"a plain function does not say which weights .* leave folder out"):
        evaluate(made(Plain).forward, x, y, threat=BALL, suite="pgd-1", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layout_that_changes_the_answer_is_left_out(images: tuple[Tensor, Tensor]):
    class Strided(Plain):
        """Reads the memory of its features in the order in which it lies there."""

        def forward(self, x: Tensor) -> Tensor:
            h = self.features(x)
            return self.head(h.as_strided((len(h), h[0].numel()), (h[0].numel(), 1)))

    x, y = images
    assert prepare(made(Plain), x, y, 8).fast
    assert not prepare(made(Strided), x, y, 8).fast
    assert not prepare(made(View), x, y, 8).fast
    found = evaluate(made(Strided), x, y, threat=BALL, suite="pgd-1", audit=False)
    assert found.clean_accuracy == 1


def test_frozen_graphs_are_told_apart_by_their_weights():
    first, again, other = scripted(), scripted(), scripted()
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    hashes = [hash_model(torch.jit.freeze(copy.deepcopy(model))) for model in (first, again, other)]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_what_a_strangers_own_code_raises_is_named_as_theirs(images: tuple[Tensor, Tensor]):
    class Broken(Plain):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("the flux is out of phase")

    x, y = images
    with pytest.raises(ValueError, match=r"EV226 .*: the flux is out of phase \(test_models\.py, line \d+\)"):
        evaluate(made(Broken), x, y, threat=BALL, suite="pgd-1")


def test_an_adapted_model_is_copied_whole_and_passes_on_what_it_does_not_know():
    for make in (lambda: made(Tupled), scripted):
        model = adapt(make())
        again = copy.deepcopy(model)
        assert type(again) is type(model)
        assert again.model is not model.model
        assert torch.equal(again(X), model(X))
        assert torch.equal(again.head.weight, model.head.weight)
        assert not hasattr(model, "tail")
    assert not hasattr(type(model).__new__(type(model)), "head")
