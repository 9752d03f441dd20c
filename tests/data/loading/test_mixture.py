import pytest
import torch

from conftest import tiny_data
from photographs import stored_photographs
from toughen.data import DATA, Batches, ImageData, Split
from toughen.data.loading.batches import Extra, labelled_rows
from toughen.recipes.text import build
from toughen.training.loop import train_batch
from toughen.training.setup import set_up, splits

N, M = 50, 90


def pixels(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()


TRAIN = Split(pixels(N, 0), torch.arange(N) % 5)
HARD = Split(pixels(M, 1), torch.arange(M) % 5)
SOFT = Split(pixels(M, 1), torch.softmax(torch.randn(M, 5, generator=torch.Generator().manual_seed(2)), 1))


def make(extra: Split = HARD, labelled: float = 0.3, **changes) -> Batches:
    settings = {"batch_size": 20, "seed": 0, "device": "cpu", "pad": 1, "flip": True, "classes": 5} | changes
    return Batches(TRAIN, torch.arange(N), extra=Extra(extra, 1000, labelled), **settings)


@pytest.mark.parametrize(
    ("batch_size", "share", "rows"),
    [(1024, 0.3, 307), (1024, 0.5, 512), (256, 0.5, 128), (10, 0.25, 3), (10, 0.35, 4), (10, 0.1, 1), (7, 0.5, 4)],
)
def test_rounding(batch_size, share, rows):
    assert labelled_rows(batch_size, share) == rows


def test_the_papers_batch_is_307_and_717():
    train, extra = (Split(torch.zeros(n, 1, 1, 1).byte(), torch.zeros(n).long()) for n in (2000, 3000))
    batches = Batches(
        train, torch.arange(2000), batch_size=1024, seed=0, device="cpu", extra=Extra(extra, 2000, 0.3), classes=1
    )
    for number in range(15):
        batch = batches[number]
        assert batch.extra is not None
        assert (int((~batch.extra).sum()), int(batch.extra.sum())) == (307, 717)


def test_the_ratio_is_exact_in_every_batch_and_every_example_comes_at_most_once_an_epoch():
    batches = make()
    assert len(batches) == 50 // 6
    seen = []
    for number in range(5 * len(batches)):
        batch = batches[number]
        assert batch.size == len(batch) == 20
        assert batch.extra is not None
        assert batch.extra.tolist() == [False] * 6 + [True] * 14
        assert (batch.index[:6] < N).all()
        assert (batch.index[6:] >= 1000).all()
        assert len(set(batch.index.tolist())) == 20
        seen.append(batch.index)
    for epoch in range(5):
        trained = torch.cat([index[:6] for index in seen[epoch * 8 : epoch * 8 + 8]]).tolist()
        assert len(set(trained)) == len(trained) == 48
    # The extra set has orders of its own, of 90 // 14 batches.
    for epoch in range(6):
        passed = torch.cat([index[6:] for index in seen[epoch * 6 : epoch * 6 + 6]]).tolist()
        assert len(set(passed)) == len(passed) == 84
    # What one epoch leaves out comes in another.
    assert set(torch.cat([index[:6] for index in seen]).tolist()) == set(range(N))


def test_order_is_a_function_of_the_seed_and_pixels_and_labels_are_those_of_the_index():
    batches = make(pad=0, flip=False)
    for number in (0, 9, 33):
        batch = batches[number]
        assert torch.equal(batch.index, make()[number].index)
        assert not torch.equal(batch.index, make(seed=1)[number].index)
        for row, index in enumerate(batch.index.tolist()):
            split, place = (TRAIN, index) if index < N else (HARD, index - 1000)
            assert torch.equal(batch.x[row], split.images[place].float() / 255)
            assert batch.y[row] == split.labels[place]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_together_are_one(world):
    for number in (0, 11):
        whole = make()[number]
        for rank in range(world):
            part = make(rank=rank, world=world)[number]
            assert torch.equal(part.x, whole.x[rank::world])
            assert torch.equal(part.y, whole.y[rank::world])
            assert torch.equal(part.index, whole.index[rank::world])
            assert part.extra is not None
            assert whole.extra is not None
            assert torch.equal(part.extra, whole.extra[rank::world])
            assert part.size == 20


def test_probabilities_make_all_labels_probabilities():
    batch = make(SOFT)[3]
    assert batch.y.shape == (20, 5)
    assert torch.equal(batch.y[:6], torch.nn.functional.one_hot(TRAIN.labels[batch.index[:6]], 5).float())
    assert torch.equal(batch.y[6:], SOFT.labels[batch.index[6:] - 1000])


def test_no_label_is_handed_on():
    unlabelled = Split(HARD.images, torch.full((M,), -1))
    batch = make(unlabelled)[0]
    assert batch.y[6:].tolist() == [-1] * 14


def test_repeats_concern_the_training_images():
    batch = make(repeats=3)[0]
    assert len(set(batch.index[:6].tolist())) == 2
    assert len(set(batch.index[6:].tolist())) == 14


def test_stored_extra_images(tmp_path):
    stored = stored_photographs(tmp_path, 23)
    train = Split(torch.zeros(30, 3, 16, 16).byte(), torch.arange(30) % 7)
    batches = Batches(
        train, torch.arange(30), batch_size=6, seed=0, device="cpu", classes=7, workers=0, extra=Extra(stored, 30, 0.5)
    )
    batch = batches[9]
    assert batch.x.shape == (6, 3, 16, 16)
    assert (batch.x[:3] == 0).all()
    assert (batch.x[3:].flatten(1).amax(1) > 0).all()
    assert torch.equal(batch.y[3:], stored.labels[batch.index[3:] - 30])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"labelled": 0.01}, "at least one of each"),
        ({"labelled": 0.99}, "at least one of each"),
        ({"batch_size": 200, "labelled": 0.2}, "160 extra examples, but there are 90"),
        ({"extra": Split(torch.zeros(99, 3, 9, 8).byte(), torch.zeros(99).long())}, "(3, 9, 8)"),
        ({"repeats": 4}, "multiple"),
    ],
)
def test_refusals(changes, part, one_sentence):
    assert part in one_sentence(make, **changes)


METHODS = {
    "natural": "natural",
    "adversarial": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}},
    "trades": {"name": "trades", "attack": {"name": "pgd", "steps": 2}},
    "free": {"name": "free", "replays": 2},
    "bilateral": "bilateral",
    "instance_adaptive": {"name": "instance_adaptive", "attack": {"name": "pgd", "steps": 2}, "warmup": 2},
    "label_smoothing": {"name": "label_smoothing", "labelled": 0.0, "extra": 0.2, "method": "natural"},
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_train_on_a_mixture(method, monkeypatch):
    data = tiny_data()
    monkeypatch.setitem(DATA, "tiny", lambda: data)
    recipe = build(
        {
            "data": {"source": "tiny", "extra": {"source": "unused", "labelled": 0.25}},
            "model": {"name": "small_cnn", "width": 2},
            "method": method,
            "threat": "linf:0.1",
            "batch_size": 16,
            "steps": 6,
        }
    )
    more = tiny_data()
    assert isinstance(more, ImageData)
    extra = Extra(more.train, len(data.train), 0.25)
    split, _, index = splits(recipe, data)
    job, batches = set_up(recipe, data, split, index, torch.device("cpu"), extra=extra)
    before = [parameter.clone() for parameter in job.model.parameters()]
    for number in range(3):
        train_batch(job, batches[number])
    job.finite.check()
    assert any(not torch.equal(a, b) for a, b in zip(before, job.model.parameters(), strict=True))
    for name, kind in job.method.state_kinds.items():
        if kind == "index":
            assert len(job.state[name]) == len(data.train) + len(more.train)
