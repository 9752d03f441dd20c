import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import pgd
from toughen.evaluation import Unsound, evaluate
from toughen.modes import backends
from toughen.threat import Linf, Threat
from toys import CLEAN_COUNT, EPS, Linear, labels, linear, network, photographs, rows, spec


def test_model_and_random_state_are_left_as_found():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    model.train()
    model[0].eval()
    last = model[4]
    assert isinstance(last, nn.Linear)
    last.bias.requires_grad_(False)
    last.weight.grad = torch.ones_like(last.weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    during: list[bool] = []

    def look(*_: object) -> None:
        during.append(any(p.requires_grad for p in model.parameters()) or any(m.training for m in model.modules()))

    evaluation = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2", progress=look)
    assert during == [False, False]
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [False, True, True, True, True]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["4.bias"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(last.weight.grad, torch.ones_like(last.weight))
    assert model[0].weight.grad is None
    assert not model._forward_hooks
    assert evaluation.clean_accuracy == 1, "BatchNorm used the batch's statistics"


def test_the_model_is_restored_after_a_failure():
    model, x = network().train(), photographs()
    with pytest.raises(Unsound):
        evaluate(
            model,
            x,
            labels(model, x.float() / 255),
            threat=Linf(EPS),
            suite={"bad": lambda model, x, y: x + 1},
        )
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not model._forward_hooks


def test_uint8_and_float_images_agree():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    as_bytes = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2")
    as_floats = evaluate(model, x.float() / 255, y, threat=Linf(2 / 255), suite="pgd-2")
    assert rows(as_bytes) == rows(as_floats)


def test_on_a_gpu_products_are_float32_to_the_last_bit_and_flags_are_put_back():
    flags: set[tuple[object, object]] = set()

    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flags.add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return torch.stack([x.mean((1, 2, 3)), 0 * x.amax((1, 2, 3))], 1)

    x = photographs()
    found = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with backends(tf32=True):
        evaluate(Looking(), x, torch.zeros(len(x)).long(), threat=Linf(2 / 255), suite="pgd-2")
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == found
    assert flags == {(False, False)}


def test_neither_autocast_nor_no_grad_of_the_caller_matters():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    plain = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        inside = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2")
    assert rows(plain) == rows(inside)
    # In float32 up to rounding, for the evaluator lays out memory in its own way; bfloat16 would be off by 1e-3.
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model.eval().double()(x.double() / 255), y, reduction="none")
    np.testing.assert_allclose(plain.outcomes.loss[:CLEAN_COUNT], loss.numpy(), rtol=1e-5, atol=1e-6)


def test_a_model_without_parameters_is_evaluated_where_the_images_are():
    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    x = torch.tensor([0.1, 0.48, 0.52, 0.9]).reshape(4, 1, 1, 1).expand(4, 1, 3, 3)
    evaluation = evaluate(Threshold(), x, torch.tensor([0, 0, 1, 1]), threat=Linf(0.05), suite="pgd-3")
    assert (evaluation.clean_accuracy, evaluation.robust_accuracy) == (1, 0.5)


def test_passes_are_counted_and_add_up():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    suite = {"once": spec("pgd", steps=3), "thrice": spec("pgd", steps=2, restarts=3)}
    evaluation = evaluate(model, x, y, threat=Linf(1 / 255), suite=suite, batch_size=16)
    o = evaluation.outcomes
    clean, once, thrice = (o.attack == name for name in ("clean", "once", "thrice"))
    assert set(o.forwards[clean]) == {1}
    assert set(o.backwards[clean]) == {0}
    assert set(o.forwards[once]) == set(o.backwards[once]) == {3}
    assert thrice.any()
    assert o.backwards[thrice].min() >= 2
    assert o.backwards[thrice].max() <= 6
    summary = evaluation.summary()
    verifications = int((~clean).sum()) + int((~clean & ~o.survived).sum())
    assert summary["forwards"] == int(o.forwards.sum()) + verifications
    assert summary["backwards"] == int(o.backwards.sum()) == sum(row["backwards"] for row in summary["attacks"])


def test_shares_are_whole_and_exact():
    from toughen.evaluation.work_unit import shares

    assert shares(17, 5).tolist() == [4, 4, 3, 3, 3]
    assert shares(0, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bad = x.mean((1, 2, 3)) > 0.6
            return torch.where(bad[:, None], value, torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1))

    x = torch.full((6, 1, 2, 2), 0.5)
    with pytest.raises(
        ValueError, match=r"EV203 .* 6 of 6 inputs of a batch under attack 'up'.*first ids 0, 1, 2, 3, 4"
    ):
        evaluate(
            Broken(),
            x,
            Broken()(x).argmax(1),
            threat=Linf(0.2),
            suite={"up": lambda model, x, y: x + 0.15},
        )
    x[[2, 5]] = 0.7
    with pytest.raises(ValueError, match=r"EV203 .* 2 of 6 inputs of a batch without an attack\..*first ids 12, 15\."):
        evaluate(Broken(), x, torch.zeros(6).long(), threat=Linf(0.1), suite="pgd-1", index=torch.arange(10, 16))


X, Y = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": torch.tensor([0, 1, 2, 1])}, "labels run from 0 to 2 but the model has classes 0 to 1"),
        ({"y": torch.tensor([0, -1, 0, 1])}, "labels run from -1 to 1"),
        ({"y": Y[:3]}, r"labels are torch.int64 of shape \(3,\) for 4 images"),
        ({"y": torch.ones(4, 2) / 2}, r"give class numbers \(N,\)"),
        ({"x": X * 255}, r"EV221 Inputs span .* but the threat model is defined on \[0,1\]: divide the images by 255"),
        ({"x": X - 0.5}, "EV221 .*undo the normalisation"),
        ({"x": X[0]}, r"shape \(1, 4, 4\)"),
        ({"x": (X * 255).byte()[0]}, r"shape \(1, 4, 4\)"),
        ({"x": X * float("nan")}, "^image 0 of 4 holds NaN or infinity"),
        ({"x": X[:0], "y": Y[:0]}, "no images to evaluate"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"index": torch.tensor([1, 1, 2, 3])}, "index holds 3 different ids for 4 images"),
        ({"index": torch.arange(3)}, r"index is torch.int64 of shape \(3,\)"),
        ({"threat": Linf(torch.tensor([0.1, 0.2]))}, "2 radii for 4 images"),
        ({"suite": "pgd20"}, "is not a known suite"),
        ({"suite": {}}, "holds no attack"),
        ({"model": nn.Flatten(0)}, r"the model returned torch.float32 of shape \(16,\) for 1 images"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 1))}, "one number z for each image"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, says):
    arguments = {"model": Linear(torch.ones(16), -8.0), "x": X, "y": Y, "threat": Linf(EPS), "suite": "pgd-1"} | changes
    with pytest.raises(ValueError, match=says):
        evaluate(**arguments)


def test_a_model_that_returns_images_and_inference_mode_are_refused():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(
        ValueError, match=r"the model returned torch.float32 of shape \(1, 1, 4, 4\) .* it must return logits"
    ):
        evaluate(Two(), X, Y, threat=Linf(EPS), suite="pgd-1")
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        evaluate(Linear(torch.ones(16), -8.0), X, Y, threat=Linf(EPS), suite="pgd-1")


def test_any_callable_is_an_attack():
    model, x, y = linear(dtype=torch.float32)

    def greedy(model: nn.Module, x: Tensor, y: Tensor, **given: object) -> Tensor:
        assert set(given) == {"threat", "noise"}
        return x

    class Backward:
        """Differentiates in the old way, under whatever gradient mode it finds."""

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
            leaf = x.requires_grad_()
            nn.functional.cross_entropy(model(leaf), y).backward()
            assert leaf.grad is not None
            return x + threat.eps * leaf.grad.sign()

    suite = {"greedy": greedy, "pgd": functools.partial(pgd, steps=4), "direct": pgd, "backward": Backward()}
    evaluation = evaluate(model, x, y, threat=Linf(EPS), suite=suite)
    fgsm = evaluate(model, x, y, threat=Linf(EPS), suite={"a": Backward()})
    assert evaluation.robust_accuracy == fgsm.robust_accuracy < fgsm.clean_accuracy
    described = {label: row for label, row in evaluation.settings.items() if label in ("pgd", "direct")}
    assert described == {
        "pgd": {"function": "pgd", "steps": 4},
        "direct": {"function": "pgd"},
    }
    assert evaluation.settings["greedy"]["function"].endswith("greedy")
    assert evaluation.settings["backward"]["function"].endswith("Backward")


def test_marginal_rows_are_marked():
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([mean * 0, mean - 0.5, mean * 0 - 9], 1)

    x = torch.tensor([0.5 + 4e-6, 0.5 + 1e-4, 0.3]).reshape(3, 1, 1, 1)
    evaluation = evaluate(Flat(), x, torch.tensor([1, 1, 0]), threat=Linf(0.0), suite="pgd-1")
    assert evaluation.outcomes.marginal[evaluation.outcomes.attack == "clean"].tolist() == [True, False, False]
    assert evaluation.summary()["marginal"] == 1
