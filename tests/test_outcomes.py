import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toughen.outcomes import COLUMNS, Outcomes, interval


def table(rows: list[tuple[str, int, bool]], **columns: list) -> Outcomes:
    """Outcomes from (attack, index, survived); the other columns follow."""
    attack, index, survived = zip(*rows, strict=True)
    n = len(rows)
    filled: dict[str, list] = {
        "attack": list(attack),
        "index": list(index),
        "label": [3] * n,
        "prediction": [3 if s else 1 for s in survived],
        "survived": list(survived),
        "distance": [0.1 * i for i in range(n)],
        "loss": [0.5] * n,
        "margin": [-1.0 if s else 1.0 for s in survived],
        "marginal": [False] * n,
        "forwards": [1] * n,
        "backwards": [0 if a == "clean" else 2 for a in attack],
        "seed": [0] * n,
        "aside": [False] * n,
    }
    return Outcomes(**{name: np.array(column) for name, column in (filled | columns).items()})


# Example 3 is wrong on the clean image, 2 falls to the first attack, 0 to the second, 1 stands.
CASCADE = [
    ("clean", 0, True),
    ("clean", 1, True),
    ("clean", 2, True),
    ("clean", 3, False),
    ("first", 0, True),
    ("first", 1, True),
    ("first", 2, False),
    ("second", 0, False),
    ("second", 1, True),
]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962), (1, 10, 0.0179, 0.4042), (0, 1, 0, 0.7935)],
)
def test_wilson_interval_of_known_values(k, n, low, high):
    assert interval(k, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 50000), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_ends_solve_the_score_equation(n, share, level):
    # The definition: the p at which k/n is exactly z standard errors away, with the standard error taken at p.
    k, z = round(share * n), NormalDist().inv_cdf((1 + level) / 2)
    low, high = interval(k, n, level)
    assert 0 <= low <= k / n <= high <= 1
    for p in (low, high):
        assert (k / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, rel=1e-6, abs=1e-12)


def test_interval_is_exact_at_both_ends():
    for n in (1, 3, 7, 999, 10000):
        assert interval(0, n)[0] == 0
        assert interval(n, n)[1] == 1


@pytest.mark.parametrize("arguments", [(-1, 10), (11, 10), (0, 0), (1, 2, 0.0), (1, 2, 1.0), (1, 2, float("nan"))])
def test_interval_refuses_what_is_no_proportion(arguments):
    with pytest.raises(ValueError, match=r"k = |level is"):
        interval(*arguments)


def test_accuracies_are_recomputed_from_rows():
    outcomes = table(CASCADE)
    assert (outcomes.n, outcomes.clean_correct, outcomes.robust_correct) == (4, 3, 1)
    assert (outcomes.clean_accuracy, outcomes.robust_accuracy) == (0.75, 0.25)
    assert outcomes.attacks == ["clean", "first", "second"]


def test_per_attack_gives_alone_only_where_the_attack_saw_every_correct_example():
    outcomes = table(CASCADE)
    work = {name: (t["forwards"], t["backwards"]) for name, t in outcomes.per_attack().items()}
    assert work == {"clean": (4, 0), "first": (3, 6), "second": (2, 4)}
    rows = [(name, t["attempted"], t["broken"], t["accuracy"], t["alone"]) for name, t in outcomes.per_attack().items()]
    assert rows == [("clean", 4, 1, 0.75, 0.75), ("first", 3, 1, 0.5, 0.5), ("second", 2, 1, 0.25, None)]


def test_attacks_run_independently_each_stand_alone():
    rows = [("clean", 0, True), ("clean", 1, True), ("a", 0, False), ("a", 1, True), ("b", 0, True), ("b", 1, False)]
    tallies = table(rows).per_attack()
    assert [(t["accuracy"], t["alone"]) for t in tallies.values()] == [(1.0, 1.0), (0.5, 0.5), (0.0, 0.5)]
    assert table(rows).robust_accuracy == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_robust_accuracy_is_that_of_a_loop_over_examples(verdicts):
    rows, robust = [], 0
    for index, verdict in enumerate(verdicts):
        for attack, survived in zip(("clean", "a", "b"), verdict, strict=True):
            rows.append((attack, index, survived))
            if not survived:
                break
        robust += all(verdict)
    assert table(rows).robust_correct == robust
    assert list(table(rows).per_attack().values())[-1]["accuracy"] == robust / len(verdicts)


def test_parquet_holds_the_table_and_is_the_same_bytes_twice(tmp_path):
    outcomes = table(CASCADE)
    # A folder name that pyarrow would read a column from.
    folder = tmp_path / "seed=7"
    folder.mkdir()
    outcomes.write(folder / "a.parquet")
    table(CASCADE).write(folder / "b.parquet")
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    found = Outcomes.read(folder / "a.parquet")
    for name in COLUMNS:
        before, after = getattr(outcomes, name), getattr(found, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_extreme_values_survive_the_file(tmp_path):
    rows = [("clean", -(2**63), True), ("clean", 2**63 - 1, False)]
    outcomes = table(rows, loss=[np.float32(3.4e38), np.float32(1e-45)], distance=[5e-324, 0.1])
    outcomes.write(tmp_path / "t.parquet")
    found = Outcomes.read(tmp_path / "t.parquet")
    assert found.index.tolist() == [-(2**63), 2**63 - 1]
    assert found.loss.tolist() == outcomes.loss.tolist()
    assert found.distance.tolist() == [5e-324, 0.1]


def test_a_file_of_other_columns_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"index": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"no table of outcomes: its columns are index int64; they must be attack"):
        Outcomes.read(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"[Pp]arquet"):
        Outcomes.read(tmp_path / "t.parquet")


def test_an_id_stands_once_under_an_attack():
    with pytest.raises(ValueError, match="attack 'a' has example 5 more than once"):
        table([("a", 5, True), ("b", 5, True), ("a", 5, True)])


def test_an_attack_on_an_example_without_a_clean_row_is_refused():
    with pytest.raises(ValueError, match="attack 'a' has example 9, of which there is no 'clean' row"):
        table([("clean", 0, True), ("a", 9, True)])


def test_columns_are_of_one_length_and_cannot_be_written():
    with pytest.raises(ValueError, match=r"column 'loss' has shape \(1,\)"):
        table(CASCADE, loss=[0.0])
    with pytest.raises(ValueError, match="read-only"):
        table(CASCADE).survived[0] = False


def test_parts_concatenate_in_their_order_to_the_whole():
    whole = Outcomes.concatenate([table(CASCADE[:4]), table(CASCADE[4:7]), table(CASCADE[7:])])
    assert whole.per_attack() == table(CASCADE).per_attack()
    assert len(whole) == 9
    with pytest.raises(ValueError, match="more than once"):
        Outcomes.concatenate([table(CASCADE), table(CASCADE)])
    with pytest.raises(ValueError, match="no tables"):
        Outcomes.concatenate([])


def test_a_part_without_clean_rows_has_no_accuracy():
    with pytest.raises(ValueError, match="no 'clean' rows"):
        _ = table(CASCADE[4:]).robust_accuracy


def test_marginal_examples_are_counted_once():
    marginal = [False] * 9
    marginal[0] = marginal[4] = marginal[8] = True  # example 0 twice, example 1 once
    assert table(CASCADE, marginal=marginal).marginal_examples == 2


def test_no_torch_is_imported(tmp_path):
    table(CASCADE).write(tmp_path / "t.parquet")
    code = (
        "import sys; from pathlib import Path; from toughen.outcomes import Outcomes\n"
        "assert 'pyarrow' not in sys.modules\n"
        "print(Outcomes.read(Path(sys.argv[1])).robust_accuracy, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.parquet")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0.25", "False"]
