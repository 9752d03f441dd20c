import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hand import EPS, PGD, assert_close, attacked, descend, soft_loss
from steps import CLASSES, N, batch, network, sgd_steps
from toughen.attacks import AttackSpec
from toughen.methods import AdversarialTraining, Natural
from toughen.methods.label_smoothing import LabelSmoothing
from toughen.methods.mixup import Mixup
from toughen.threat import Linf

EXTRA = torch.tensor([False, True, False, True, True, False])
# Not as many of each class: a share of the batch would be one of the classes.
CLASS = [0, 2, 1, 1, 0, 1]


def test_the_step_on_smoothed_labels_worked_out_by_hand():
    inner = AdversarialTraining(attack=AttackSpec(**PGD), threat=Linf(EPS))
    method = LabelSmoothing(labelled=0.2, extra=0.4, method=inner)
    one = replace(batch(), y=torch.tensor(CLASS), extra=EXTRA)
    model = network()
    hand = copy.deepcopy(model)
    sgd_steps(method, model, [one], {})

    y = torch.full((N, CLASSES), 0.2 / 3, dtype=torch.float64)
    y[EXTRA] = 0.4 / 3
    for i, c in enumerate(CLASS):
        y[i, c] = 0.6 + 0.4 / 3 if EXTRA[i] else 0.8 + 0.2 / 3

    def loss(logits: Tensor) -> Tensor:
        return soft_loss(logits, y)

    # The attack, too, ascends the loss of the smoothed labels.
    descend(hand, loss(hand(attacked(hand, one.x, loss, one.noise))).mean())
    assert_close(model, hand)


def test_rows_without_a_label_stay_zero_and_all_others_keep_their_mass():
    one = replace(batch(), y=torch.tensor([0, -1, 1, -1, 0, 2]), extra=EXTRA)
    y = LabelSmoothing(labelled=0.3, extra=0.6).changed(one).y
    assert torch.equal(y[[1, 3]], torch.zeros(2, CLASSES, dtype=torch.float64))
    assert torch.allclose(y[[0, 2, 4, 5]].sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert y[0].tolist() == pytest.approx([0.8, 0.1, 0.1], abs=1e-15)
    assert y[4].tolist() == pytest.approx([0.6, 0.2, 0.2], abs=1e-15)


@pytest.mark.parametrize(("labelled", "extra", "mask"), [(0, 0, EXTRA), (0, 0, None), (0, 0.5, None)])
def test_where_nothing_is_smoothed_the_batch_is_handed_on_untouched(labelled: float, extra: float, mask: Tensor | None):
    one = replace(batch(), extra=mask)
    method = LabelSmoothing(labelled=labelled, extra=extra, method=Natural())
    assert method.changed(one) is one
    assert method.forwards == ("clean",)


def test_without_an_extra_set_every_image_is_labelled():
    one = batch()
    none, no_extra = one, replace(one, extra=torch.zeros(N, dtype=torch.bool))
    method = LabelSmoothing(labelled=0.3, extra=0.6)
    assert torch.equal(method.changed(none).y, method.changed(no_extra).y)
    every = replace(one, extra=torch.ones(N, dtype=torch.bool))
    assert torch.equal(method.changed(every).y, LabelSmoothing(labelled=0.6).changed(one).y)
    # One of the two alone.
    only = LabelSmoothing(labelled=0, extra=0.6).changed(replace(one, extra=EXTRA)).y
    assert torch.equal(only[~EXTRA], torch.eye(CLASSES, dtype=torch.float64)[one.y[~EXTRA]])
    assert (only[EXTRA] > 0).all()


def test_smoothing_before_and_after_mixing_is_the_same_linear_map():
    one = replace(batch(), y=torch.tensor([0, -1, 1, 2, 0, -1]))
    smooth, mix = LabelSmoothing(labelled=0.3), Mixup(alpha=0.7)
    before, after = mix.changed(smooth.changed(one)), smooth.changed(mix.changed(one))
    assert torch.equal(before.x, after.x)
    assert torch.allclose(before.y, after.y, rtol=0, atol=1e-15)


def test_an_empty_shard_and_single_precision():
    one = batch()
    empty = replace(one, x=one.x[:0], y=one.y[:0], index=one.index[:0], noise=one.noise[:0], extra=EXTRA[:0])
    assert LabelSmoothing().changed(empty).y.shape == (0, CLASSES)
    assert LabelSmoothing().changed(replace(one, x=one.x.float(), extra=EXTRA)).y.dtype == torch.float32
