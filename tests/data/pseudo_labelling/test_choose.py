import math

import numpy as np
import pytest
import torch

from toughen.data.pseudo_labelling.choose import choose, probabilities, score_predictions
from toughen.noise import generator


def by_hand(scores, predicted, counts, classes, allowed=None):
    """The sets by plain sorting: for each count the positions that belong to it."""
    sets = {}
    for count in counts:
        chosen = set()
        for k in range(classes):
            quota = count // classes + (1 if k < count % classes else 0)
            members = [i for i in range(len(scores)) if predicted[i] == k and (allowed is None or allowed[i])]
            chosen |= set(sorted(members, key=lambda i: (-scores[i], i))[:quota])
        sets[count] = chosen
    return sets


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_sets_are_those_of_plain_sorting_and_nested(classes):
    draw = generator("choose", classes)
    predicted = torch.randint(0, classes + 1, (300,), generator=draw)
    scores = torch.randint(0, 9, (300,), generator=draw).double() / 3  # many ties
    allowed = torch.rand(300, generator=draw) < 0.7
    counts = (50, 7, 20, 120)
    for some in (None, allowed):
        found = choose(scores, predicted, counts=counts, classes=classes, allowed=some)
        expected = by_hand(
            scores.tolist(), predicted.tolist(), counts, classes, None if some is None else some.tolist()
        )
        index, smallest = found.index.tolist(), found.set.tolist()
        assert len(set(index)) == len(index)
        previous: set[int] = set()
        for count in sorted(counts):
            held = {i for i, s in zip(index, smallest, strict=True) if s <= count}
            assert held == expected[count] == set(index[: len(held)])  # a set is the first rows
            assert previous <= held
            assert sum(found.taken[count]) == len(held)
            assert found.taken[count] == [sum(int(predicted[i]) == k for i in held) for k in range(classes)]
            previous = held
        assert smallest == sorted(smallest)
        for count in counts:
            rows = [i for i, s in zip(index, smallest, strict=True) if s == count]
            assert rows == sorted(rows)


def test_short_classes_give_what_they_have_and_say_so():
    predicted = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    found = choose(torch.arange(8.0), predicted, counts=(7, 3), classes=3)
    assert found.wanted == {3: [1, 1, 1], 7: [3, 2, 2]}
    assert found.taken == {3: [1, 1, 1], 7: [3, 1, 2]}
    assert found.missing == {3: {}, 7: {1: 1}}
    assert found.index.tolist() == [2, 3, 7, 0, 1, 6]
    assert found.set.tolist() == [3, 3, 3, 7, 7, 7]
    nothing = choose(torch.empty(0), torch.empty(0, dtype=torch.int64), counts=(4,), classes=2)
    assert nothing.missing == {4: {0: 2, 1: 2}}
    assert len(nothing.index) == 0


def test_scores_have_the_order_of_the_probability_also_where_that_is_one():
    logits = torch.randn(200, 5, generator=generator("judged")) * 3
    predicted, scores = score_predictions(logits)
    p = logits.double().softmax(1).max(1)
    assert predicted.tolist() == p.indices.tolist()
    assert scores.sigmoid().numpy() == pytest.approx(p.values.numpy(), rel=1e-12)
    sure = torch.tensor([[60.0, 0, 0], [50.0, 0, 0], [0, 55.0, 0], [1000.0, 0, 0]])
    assert (sure.softmax(1).max(1).values == 1).all()
    predicted, scores = score_predictions(sure)
    assert predicted.tolist() == [0, 0, 1, 0]
    assert scores.tolist() == pytest.approx([60 - math.log(2), 50 - math.log(2), 55 - math.log(2), 1000 - math.log(2)])


def test_the_foreign_class_counts_in_the_ranking_and_is_never_chosen():
    # Of two images with equal logits of their class, the one that looks foreign ranks lower; a foreign one is out.
    logits = torch.tensor([[4.0, 0, 3], [4.0, 0, 0], [0, 1.0, 5], [0, 2.0, 1]])
    predicted, scores = score_predictions(logits)
    assert predicted.tolist() == [0, 0, 2, 1]
    found = choose(scores, predicted, counts=(2,), classes=2)
    assert found.index.tolist() == [1, 3]
    soft = probabilities(logits, classes=2)
    assert soft.dtype == torch.float32
    assert soft[0].tolist() == pytest.approx([1 / (1 + math.exp(-4)), 1 / (1 + math.exp(4))])
    assert soft.sum(1).numpy() == pytest.approx(np.ones(4))


@pytest.mark.parametrize("counts", [(), (3,), (10, 10), (0, 20)])
def test_counts_that_make_no_sense_are_refused(counts, one_sentence):
    text = one_sentence(choose, torch.zeros(9), torch.zeros(9, dtype=torch.int64), counts=counts, classes=4)
    assert "at least 4" in text
