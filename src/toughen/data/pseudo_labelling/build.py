"""An extra, pseudo-labelled training set from a pool of images: scored, freed of test images, chosen, written.

    done = label(pool, scorer, test_images=test, classes=names, counts=(200_000, 500_000), out=Path("extra"))
    done["sets"]                                     # the manifest, as it lies in extra/manifest.json

The order of work. (1) The pool is read once, in chunks of a fixed size: every image is scored, and compared with every
test image; a finished chunk is a file, and a process that is killed loses at most one. (2) Images within `threshold`
of a test image are out, so are those that the scorer finds foreign; of the rest the surest N / K of each class are
taken (`choose`). (3) The chosen are read again, labelled by a second classifier if there is one, and written; then the
manifest. The same call on the same folder goes on where the last one ended, and ends with the same bytes.

    out/scores/                   while it works: request.json and a file a chunk
    out/clean_logits.safetensors  what the models answered to the first images, by which they are known again
    out/train-00000-of-00002.parquet
    out/duplicates.parquet        what was left out: pool_index, test_index, distance
    out/perceptual.parquet        what looks like a test image (see `Reference.alike`), left out or not
    out/manifest.json             what was asked, done and found: the set is complete
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from toughen import __version__
from toughen.data.files import hash_file, write_npz
from toughen.data.lazy_split import LazySplit
from toughen.data.pseudo_labelling.choose import Choice, check_counts, choose, probabilities, score_predictions
from toughen.data.pseudo_labelling.duplicates import BOUND, Pool, Reference, squared_limit
from toughen.data.pseudo_labelling.files import (
    DUPLICATES,
    PERCEPTUAL,
    read_arrays,
    read_labels,
    shard_names,
    shard_rows,
    write_columns,
    write_shard,
)
from toughen.models.adapted import as_module
from toughen.models.batched import predict
from toughen.models.hashes import hash_model, hash_tensor
from toughen.models.identity import CLEAN_LOGITS, Answers, answers_of, begun, recognise
from toughen.models.inputs import placement
from toughen.models.prepared import PreparedModel, ProgressFunction, prepare
from toughen.models.refusals import check_takes
from toughen.storage import files as store

Labels = Literal["hard", "probabilities"]
THRESHOLD = 2000 / 255
"""Distance of Carmon et al. 2019 for 32x32 images (docs/methods/extra_data.md, How a set is chosen)."""

MANIFEST = "manifest.json"
SCORES, REQUEST = "scores", "request.json"

_CHUNK_BYTES = 2**26
_CHUNK = 8192


def label(
    pool: Pool,
    scorer: nn.Module,
    *,
    test_images: Tensor,
    classes: Sequence[str],
    counts: Sequence[int],
    out: Path,
    threshold: float = THRESHOLD,
    labels: Labels = "hard",
    labeller: nn.Module | None = None,
    foreign: bool = False,
    batch_size: int = 256,
    progress: ProgressFunction | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Build an extra training set in a folder.

    Memory: the test images and what is made of them (100 MiB for 10,000 of CIFAR-10), as much for their distances to a
    block of images, a chunk of 64 MiB of pixels, a pass of the models, and some 100 bytes for each image of the pool.

    Args:
        pool: N images (C, H, W); what labels it has are not looked at.
        scorer: classifier of images in [0, 1], on its device: K logits, or K + 1 with `foreign`.
        test_images: (T, C, H, W) uint8, of which no copy may be chosen. Only distances to them are computed.
        classes: the K classes' names.
        counts: sizes of the sets, which hold one another; each class gives its share, see `choose`.
        out: the folder: new, empty, or of the same call.
        threshold: L2 distance, pixels in [0, 1], up to which an image counts as a copy of a test image.
        labels: "hard", class indices, or "probabilities" as well.
        labeller: a second classifier with K logits that labels the chosen images; by default the scorer does.
        foreign: whether the scorer's last logit is for images that show none of the classes.
        batch_size: images in a pass of a model.
        progress: told of every chunk and file.
        note: is told where an earlier set was put, of which it cannot be told whether it is this one.

    Returns:
        The manifest.

    Raises:
        ValueError: an argument that makes no sense; a model that takes no such images, has another number of logits, or
            logits that are no numbers; nothing is left to choose; or the folder holds something else.
        Locked: another process works in the folder.
    """
    check_counts(counts, len(classes))
    squared_limit(threshold)
    if not len(pool):
        raise ValueError("The pool holds no image; give one with images.")
    models = {"scorer": scorer} | ({"labeller": labeller} if labeller else {})
    models = {what: as_module(model, kept="give a torch.nn.Module") for what, model in models.items()}
    request = {
        "version": __version__,
        "pool": {"images": len(pool), "fingerprint": fingerprint(pool)},
        "test": {"images": len(test_images), "fingerprint": hash_tensor(test_images)},
        "scorer": hash_model(models["scorer"]),
        "labeller": hash_model(models["labeller"]) if labeller else None,
        "classes": list(classes),
        "counts": sorted(counts),
        "threshold": threshold,
        "labels": labels,
        "foreign": foreign,
    }
    _refuse_other_files(out)
    _refuse_other_request(out, request)

    def look() -> Answers:
        first = pool.take(torch.arange(min(len(pool), batch_size))).images
        return answers_of({what: (model, first) for what, model in models.items()}, batch_size=batch_size)

    found, said = recognise(out, _begun(out), {}, look, of="an extra set")
    if said:
        note(said)
    with store.lock(out):
        for left in [*out.glob(".tmp-*"), *out.glob(f"{SCORES}/.tmp-*")]:
            store.delete(left)
        if (out / MANIFEST).is_file():
            shutil.rmtree(out / SCORES, ignore_errors=True)
            return store.read_json(out / MANIFEST)
        job = _Job(pool, models, batch_size, request, out, progress)
        if found is None:
            for what, model in models.items():
                check_takes(model, job.shape, placement(model, job.first)[0], what=f"The {what}")
            (out / SCORES).mkdir(exist_ok=True)
            found = begun(out, {}, look)
            store.write_json(out / SCORES / REQUEST, {"request": request, "identity": found})
        done = _choose_and_write(job, job.scores(test_images)) | {"identity": found}
        store.write_json(out / MANIFEST, done)
        shutil.rmtree(out / SCORES, ignore_errors=True)
        return done


class _Job:
    """The streaming part: what is asked of every image of the pool."""

    def __init__(
        self,
        pool: Pool,
        models: dict[str, nn.Module],
        batch_size: int,
        request: dict[str, Any],
        out: Path,
        progress: ProgressFunction | None,
    ) -> None:
        self.pool, self.models, self.batch_size, self.request = pool, models, batch_size, request
        self.classes, self.soft = len(request["classes"]), request["labels"] == "probabilities"
        self.first = pool.take(torch.zeros(1, dtype=torch.int64)).images
        self.shape = tuple(self.first.shape[1:])
        # Part of what a chunk's file means, so a pure function of the images' shape.
        self.chunk = max(1, min(_CHUNK, _CHUNK_BYTES // self.first.numel()))
        self.out, self.tell = out, progress or (lambda what, done, total: None)
        self.prepared: dict[str, PreparedModel] = {}

    def scores(self, test_images: Tensor) -> dict[str, np.ndarray]:
        """What was found of each image, chunk by chunk, from files where they are there."""
        reference: Reference | None = None
        chunks = torch.arange(len(self.pool)).split(self.chunk)
        paths = [self.out / SCORES / f"{number:08d}.npz" for number in range(len(chunks))]
        for path, rows in zip(paths, chunks, strict=True):
            if not path.is_file():
                reference = reference or Reference(test_images, device=self.prepare("scorer").device)
                write_npz(path, self._score(rows, reference))
            self.tell("scored", int(rows[-1]) + 1, len(self.pool))
        # Read only now: what is kept between the chunks' large tensors fragments the heap (see `near`).
        parts = [read_arrays(path) for path in paths]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _score(self, rows: Tensor, reference: Reference) -> dict[str, np.ndarray]:
        images = self.pool.take(rows).images
        logits = self.logits("scorer", images, self.classes + self.request["foreign"], rows)
        predicted, scores = score_predictions(logits)
        nearest, alike = reference.nearest(images), reference.alike(images)
        found = {
            "predicted": predicted.to(torch.int32),
            "score": scores,
            "squared": nearest.squared,
            "nearest": nearest.index.to(torch.int32),
            "correlation": alike.correlation,
            "alike": alike.index.to(torch.int32),
            "mirrored": alike.mirrored,
        }
        if self.soft:
            found["probabilities"] = probabilities(logits, classes=self.classes)
        return {name: column.numpy() for name, column in found.items()}

    def second_opinion(self, rows: np.ndarray) -> np.ndarray:
        """The labeller's probabilities (n, K) float32 of the images at `rows`."""
        parts = []
        for some in torch.from_numpy(rows).split(self.chunk):
            logits = self.logits("labeller", self.pool.take(some).images, self.classes, some)
            parts.append(probabilities(logits, classes=self.classes))
        return torch.cat(parts).numpy()

    def prepare(self, what: str) -> PreparedModel:
        """A model, prepared when it is first needed: where all is done but the manifest, none is run."""
        if what not in self.prepared:
            self.prepared[what] = prepare(self.models[what], self.first, None, self.batch_size)
        return self.prepared[what]

    def logits(self, what: str, images: Tensor, outputs: int, rows: Tensor) -> Tensor:
        """(n, outputs) on the CPU, of uint8 images."""
        model = self.prepare(what)
        with model.ready():
            parts = [predict(model.model, model.images(some)).cpu() for some in images.split(model.model.size)]
        logits = torch.cat(parts)
        if logits.shape != (len(images), outputs):
            extra = " and one for foreign images" if outputs > self.classes else ""
            raise ValueError(
                f"The {what} gives logits of shape {tuple(logits.shape)} for {len(images)} images, but must give "
                f"{outputs} an image: one for each of the {self.classes} classes{extra}."
            )
        broken = (~logits.isfinite().all(1)).nonzero()
        if len(broken):
            raise ValueError(
                f"The {what} gives logits that are no finite numbers for image {int(rows[broken[0, 0]])} of the pool; "
                "check the model."
            )
        return logits


def _choose_and_write(job: _Job, scored: dict[str, np.ndarray]) -> dict[str, Any]:
    """Choose, write every file but the manifest, and return that."""
    request = job.request
    copies = scored["squared"] <= squared_limit(request["threshold"])
    outside = scored["predicted"] >= job.classes
    choice = choose(
        torch.from_numpy(scored["score"]),
        torch.from_numpy(scored["predicted"]).long(),
        counts=request["counts"],
        classes=job.classes,
        allowed=torch.from_numpy(~copies),
    )
    if not len(choice.index):
        raise ValueError(
            f"Of the {len(copies)} images of the pool none is left to choose: {copies.sum()} are within "
            f"{request['threshold']:.4g} of a test image, {(outside & ~copies).sum()} others are foreign; give another "
            "pool or a smaller threshold."
        )
    distance = np.sqrt(scored["squared"].astype(np.float64)) / 255
    left_out = copies.nonzero()[0]
    write_columns(
        job.out / DUPLICATES,
        pool_index=left_out,
        test_index=scored["nearest"][left_out].astype(np.int64),
        distance=distance[left_out],
    )
    similar = (scored["correlation"] >= BOUND).nonzero()[0]
    chosen_ones = np.isin(similar, choice.index.numpy())
    write_columns(
        job.out / PERCEPTUAL,
        pool_index=similar,
        test_index=scored["alike"][similar].astype(np.int64),
        correlation=scored["correlation"][similar],
        mirrored=scored["mirrored"][similar],
        removed=copies[similar],
        chosen=chosen_ones,
    )
    files = _write_images(job, scored, choice, distance, request["classes"])
    labeller = "labeller" in job.models
    agreeing = np.concatenate([read_labels(job.out / name) for name in files]) == scored["predicted"][choice.index]
    kept = ~copies & ~outside
    return {
        "request": request,
        "pool": {
            "images": len(copies),
            "shape": list(job.shape),
            "removed_within_threshold": int(copies.sum()),
            "exact_copies": int((scored["squared"] == 0).sum()),
            "foreign": int((outside & ~copies).sum()),
            "candidates": int(kept.sum()),
            "distance_quantiles": _quantiles(distance),
        },
        "perceptual": {
            "bound": BOUND,
            "images": len(similar),
            "mirrored": int(scored["mirrored"][similar].sum()),
            "removed": int(copies[similar].sum()),
            "chosen": int(chosen_ones.sum()),
        },
        "sets": _sets(choice, _probability(scored["score"]), scored["predicted"], request["classes"]),
        "classes": {
            name: {"candidates": int((kept & (scored["predicted"] == k)).sum())}
            for k, name in enumerate(request["classes"])
        },
        "labelled_by": "labeller" if labeller else "scorer",
        "labeller_agrees": float(agreeing.mean()) if labeller else None,
        "files": {name: hash_file(job.out / name) for name in [*files, DUPLICATES, PERCEPTUAL]},
        "versions": {"toughen": __version__} | {key: version(key) for key in ("torch", "numpy", "pillow", "pyarrow")},
    }


def _write_images(
    job: _Job,
    scored: dict[str, np.ndarray],
    choice: Choice,
    distance: np.ndarray,
    names: Sequence[str],
) -> list[str]:
    """Write the shards that are not there yet; the names of all."""
    index, size = choice.index.numpy(), shard_rows(job.shape)
    files = shard_names(len(index), job.shape)
    for number, name in enumerate(files):
        part = slice(number * size, (number + 1) * size)
        rows = index[part]
        if not (job.out / name).is_file():
            hard = scored["predicted"][rows].astype(np.int64)
            soft = scored["probabilities"][rows] if job.soft else None
            if "labeller" in job.models:
                second = job.second_opinion(rows)
                hard, soft = second.argmax(1), second if job.soft else None
            columns = {"label": hard} | ({} if soft is None else {"probabilities": soft})
            columns |= {"score": _probability(scored["score"][rows]), "pool_index": rows}
            columns |= {"distance": distance[rows], "set": choice.set.numpy()[part]}
            write_shard(job.out / name, job.pool, columns, names)
        job.tell("written", min(part.stop, len(index)), len(index))
    return files


def _sets(choice: Choice, score: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each count what its set holds, and how sure the scorer is of it."""
    index, smallest, sets = choice.index.numpy(), choice.set.numpy(), []
    for count, taken in choice.taken.items():
        held = index[smallest <= count]
        rows = {}
        for k, name in enumerate(names):
            scores = score[held[predicted[held] == k]]
            rows[name] = {"chosen": taken[k], "score_quantiles": _quantiles(scores)}
            if k in choice.missing[count]:
                rows[name]["missing"] = choice.missing[count][k]
        sets.append({"count": count, "chosen": len(held), "missing": count - len(held), "classes": rows})
    return sets


def _probability(score: np.ndarray) -> np.ndarray:
    """The softmax probability of a score of `score_predictions`."""
    # Not `sigmoid`, which gives a score other last bits in a shard than among all.
    return (1 + torch.from_numpy(-score).exp()).reciprocal().numpy()


def _quantiles(values: np.ndarray) -> list[float] | None:
    """Least, quarter, median, three quarters, most."""
    return [float(value) for value in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))] if len(values) else None


def fingerprint(pool: Pool) -> str:
    """What tells a pool from all others: SHA-256 of its pixels, or of where its encoded ones are (see `LazySplit`)."""
    if isinstance(pool, LazySplit):
        return hashlib.sha256(f"{pool.key};{pool.view and pool.view.key};{hash_tensor(pool.rows)}".encode()).hexdigest()
    return hash_tensor(pool.images)


def _refuse_other_files(out: Path) -> None:
    ours = {MANIFEST, SCORES, CLEAN_LOGITS}
    there = sorted(path.name for path in out.glob("*")) if out.is_dir() else []
    others = [name for name in there if name not in ours and not name.startswith(".")]
    if others and not ours & set(there):
        raise ValueError(f"{out} holds other files ({others[0]}); give a new or empty folder.")


def _begun(out: Path) -> Path:
    """The file that says what was asked of the set that lies in a folder; it need not be there."""
    manifest, begun = out / MANIFEST, out / SCORES / REQUEST
    # A call that failed before its first chunk, say for a model that does not fit, has begun nothing.
    return begun if any(begun.parent.glob("*.npz")) and not manifest.is_file() else manifest


def _refuse_other_request(out: Path, request: dict[str, Any]) -> None:
    """Refuse the folder of another call."""
    if not (path := _begun(out)).is_file():
        return
    found = store.read_json(path)["request"]
    # As JSON gives them back, so that equal settings are equal.
    given = store.decode(store.encode(request), path)
    for name in [*given, *found]:
        if found.get(name) != given.get(name):
            raise ValueError(f"{out} holds another extra set ({name} differs); give another folder, or delete it.")
