import numpy as np

from toughen.evaluation.audit.findings import Audit, Finding, advised, exceeds, finding
from toughen.outcomes import CLEAN, Outcomes


def plain_audit(standing_pgd: int = 100, standing: int = 100) -> Audit:
    return Audit((), (), 128, 0, 0, tuple(range(128)), tuple(range(standing_pgd)), tuple(range(standing)))


def table(broken: dict[str, list[int]], *, n: int = 128, aside: tuple[str, ...] = ()) -> Outcomes:
    """A cascade: who each attack breaks, all others before it having left."""
    rows, standing = [], list(range(n))
    for attack, ids in broken.items():
        rows += [(attack, i, i not in ids) for i in standing]
        if attack not in aside:
            standing = [i for i in standing if i not in ids]
    attack, index, survived = (np.array(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows))
    backwards = np.array([name not in (CLEAN, "square") for name in attack])
    columns = dict.fromkeys(("label", "prediction", "distance", "loss", "margin", "marginal", "seed"), zeros)
    return Outcomes(
        attack=attack,
        index=index,
        survived=survived,
        aside=np.isin(attack, aside),
        forwards=zeros + 1,
        backwards=backwards,
        **columns,
    )


def said(alone: Finding) -> Finding:
    """A finding as an audit says it that has no other."""
    (found,) = advised([alone])
    return found


WRONG = list(range(120, 128))


def test_after_a_sound_evaluation_nothing_is_added():
    outcomes = table({CLEAN: WRONG, "apgd-ce": list(range(97, 120)), "square": [96]})
    assert plain_audit().after(outcomes) == plain_audit()


def test_pgd_far_above_the_strongest_attack():
    outcomes = table({CLEAN: WRONG, "apgd-ce": list(range(80, 120)), "square": []})
    (gap,) = plain_audit().after(outcomes).findings
    assert gap == said(finding("EV286", pgd_20=100, lost=20, examples=128))


def test_square_beats_all_gradients():
    outcomes = table({CLEAN: WRONG, "apgd-ce": list(range(110, 120)), "square": list(range(98, 110))})
    (blind,) = plain_audit().after(outcomes).findings
    assert blind == said(finding("EV287", attacks="square", lost=12, examples=128))


def test_the_audit_breaks_what_the_suite_left_standing():
    outcomes = table({CLEAN: WRONG, "apgd-ce": list(range(100, 120)), "square": []})
    (missed,) = plain_audit(standing=80).after(outcomes).findings
    assert missed.code == "EV288"
    assert "breaks 20 of 128 examples that the evaluation did not (ids 80, 81, 82, 83, 84, ...)" in missed.message


def test_a_weak_suite_leaves_things_unchecked():
    found = plain_audit().after(table({CLEAN: WRONG, "pgd-20": list(range(100, 120))}))
    assert found.findings == ()
    assert found.not_checked == (
        "PGD-20 was not compared with a stronger attack; use suite autoattack.",
        "Attacks with and without gradients were not compared; use suite autoattack.",
    )


def test_attacks_aside_do_not_count():
    broken = {CLEAN: WRONG, "apgd-ce": list(range(100, 120)), "square": [], "apgd-huge": list(range(100))}
    assert plain_audit().after(table(broken, aside=("apgd-huge",))).findings == ()


def test_exceeds_is_a_confidence_bound():
    assert not exceeds(0, 128, 0.0)
    assert not exceeds(5, 128, 0.03)
    assert exceeds(8, 128, 0.03)
    assert exceeds(40, 1000, 0.03)
    assert not exceeds(36, 1000, 0.03)
