"""What a recipe builds: splits, batches, model, optimiser, and the job that holds them in its first state.

Example:
    job, batches = set_up(recipe, data, train_split, index, device)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from toughen import devices, models
from toughen.data import Batches, ImageData, held_out, load, load_extra, subset
from toughen.data.base import Examples, check_several_classes, first, per_class
from toughen.data.dataset_card import DatasetCard
from toughen.data.integrity import check_stored_images
from toughen.data.lazy_split import LazySplit
from toughen.data.loading.batches import Extra
from toughen.errors import Option, UsageError, naming
from toughen.methods import Spec
from toughen.methods.base import Robust
from toughen.methods.wrapper import nested
from toughen.models.inputs import check_reach
from toughen.models.refusals import check_trains
from toughen.noise import derive
from toughen.optim.ema import Averages
from toughen.optim.schedules import warmed_up
from toughen.parallel import ranks, sharding
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import KEYS
from toughen.training.acceleration import (
    SEEN,
    Acceleration,
    Graphs,
    chosen_ways,
    folding_of,
    laid_out,
)
from toughen.training.activation_checkpointing import blocks
from toughen.training.initial_weights import check_start, expected_normalization, start
from toughen.training.loop import Job
from toughen.training.micro_batches import has_batchnorm, images_needed, leave_out_short
from toughen.training.monitors import Finite
from toughen.training.unsafe_kernels import REASON, narrow

WAY_OUT = ("restore them, or begin anew in another ", Option("out"))

PATIENCE = 10
"""Seconds of looking at images after which the user is told so."""

SAMPLE = 2048
"""Stored images that are decoded for the statistics of their channels."""


def load_data(recipe: Recipe) -> ImageData:
    """The recipe's data set, with the extra, pseudo-labelled set left aside."""
    with naming(**KEYS):
        return load(recipe.data.source, recipe.data.view)


def load_pseudo_labelled(recipe: Recipe, data: ImageData) -> Extra | None:
    """The recipe's extra set, numbered after the training images; None where there is none."""
    settings = recipe.data.extra
    if settings is None:
        return None
    try:
        examples = load_extra(settings.source, shape=data.image_shape, classes=data.classes, view=recipe.data.view)
        if settings.limit is not None:
            examples = first(examples, settings.limit)
    except ValueError as error:
        raise RecipeError("data.extra: ", error) from None
    return Extra(examples, len(data.train), settings.labelled)


def splits(recipe: Recipe, data: ImageData) -> tuple[Examples, Examples, Tensor]:
    """Training and validation images and their numbers; the test split is not looked at."""
    settings = recipe.data
    if not len(data.train):
        raise RecipeError(
            f"data: {data.name} holds {data.test_part} images alone, and nothing to train on; give data with training "
            "images, and keep these to evaluate on"
        )
    try:
        check_several_classes(data)
        train_split, validation, index = held_out(data, seed=recipe.seed, size=settings.validation)
        if settings.limit is not None:
            train_split, chosen = subset(train_split, settings.limit, seed=recipe.seed)
            index = index[chosen]
        elif settings.per_class is not None:
            train_split, chosen = per_class(train_split, settings.per_class, seed=recipe.seed)
            index = index[chosen]
    except ValueError as error:
        raise RecipeError(f"data: {error}") from None
    return train_split, validation, index


def check_balls(recipe: Recipe, shape: Sequence[int] | None) -> tuple[str, ...]:
    """Refuse before training a radius that a validation would refuse in its midst; and what to say of it, if anything.

    Args:
        recipe: its ball and the method's own.
        shape: of the images, (C, H, W); None where it is not known.

    Raises:
        RecipeError: a ball reaches every image.
    """
    said: list[str] = []
    own = [inner.ball for inner in nested(recipe.method.resolved(recipe.threat)) if isinstance(inner, Robust)]
    for name, ball in (("threat", recipe.threat), *(("method.threat", ball) for ball in own)):
        try:
            said += [f"{name}: {note}" for note in check_reach(ball, shape)] if shape else []
        except ValueError as error:
            raise RecipeError(f"{name}: {error}") from None
    # The method's ball is the recipe's most often.
    return tuple(said[:1])


def check_images(
    splits: Mapping[str, Examples], note: Callable[[str], None] = lambda text: None, *, fresh: bool = True
) -> None:
    """Refuse stored images that cannot be decoded, all of them at once, before anything is trained on the others.

    The first rank looks, and tells the others every few seconds that it is not dead.

    Args:
        splits: by name, whatever a run reads.
        note: is told of progress where it takes long.
        fresh: whether the run begins here, and not where a checkpoint is.

    Raises:
        RecipeError: images are broken, see `toughen.data.integrity`.
    """
    looked = check_stored_images(splits) if ranks.is_main() else iter(())
    told = time.monotonic()
    while True:
        state: tuple[tuple[int, int] | None, str] = (None, "")
        try:
            state = (next(looked, None), "")
        except ValueError as error:
            state = (None, str(RecipeError(error)))
        progress, fault = ranks.from_main(state)
        if fault:
            raise refusal(ValueError(fault), fresh=fresh)
        if progress is None:
            return
        if time.monotonic() - told >= PATIENCE:
            told = time.monotonic()
            note(f"looking whether all images can be decoded: {progress[0]:,} of {progress[1]:,}")


def refusal(fault: ValueError, *, fresh: bool) -> RecipeError:
    """What to do about a broken image, which a run that has begun cannot do without."""
    kept = () if fresh else ("; but this run goes on only with the images that it began with: ", *WAY_OUT)
    return RecipeError(f"data: {str(RecipeError(fault)).rstrip('.')}", *kept)


def set_up(
    recipe: Recipe,
    data: ImageData,
    split: Examples,
    index: Tensor,
    device: torch.device,
    *,
    extra: Extra | None = None,
    note: Callable[[str], None] = lambda text: None,
    dtype: torch.dtype = torch.float32,
    fresh: bool = True,
    ways: Acceleration | None = None,
) -> tuple[Job, Batches]:
    """Everything that trains, in its first state, with weights and method state of one type.

    What the user should know of the weights that training starts from is told to `note`. Where a checkpoint brings all
    tensors, `fresh` is False: then weights and normalisation are left to it, and nothing is fetched or read. A run that
    goes on computes in the `ways` in which it began; None chooses them.
    """
    check_auto(recipe, device)
    try:
        batches = Batches(
            split,
            index,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            device=device,
            pad=recipe.data.pad,
            flip=recipe.data.flip,
            pad_mode=recipe.data.pad_mode,
            repeats=recipe.data.repeats,
            classes=data.num_classes,
            extra=extra,
            workers=recipe.data.workers,
            note=note,
            rank=ranks.rank(),
            world=ranks.world(),
        )
    except ValueError as error:
        raise RecipeError(f"data: {error}") from None
    if fresh:
        check_start(recipe)
    model = build_model(recipe, data, split if fresh else None)
    start(model, recipe, note, fresh=fresh)
    model.to(device, dtype)
    if fresh:
        try:
            what, classes = f"model: {recipe.model.name}", data.num_classes
            check_trains(model, data.image_shape, device, dtype, classes=classes, what=what)
        except ValueError as error:
            raise RecipeError(error) from None
    together = recipe.batchnorm == "synchronised" and synchronises(model, device)
    least = images_needed(recipe, model, data.image_shape, device, together=together)
    rows = None if recipe.micro_batch == "auto" else recipe.micro_batch
    leave_out_short(recipe, model, batches, rows, least, note)
    slots = ranks.slots(recipe.batch_size)
    try:
        without = narrow(model, data.image_shape, device, dtype)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from None
    # A run that began on another kind of device may have been in ways that are not seen here.
    ways = (ways if device.type in SEEN else None) or chosen_ways(
        recipe, model, (slots, *data.image_shape), device, note, without
    )
    if without and (ways.channels_last or ways.compiled):
        # A run that began elsewhere, on a GPU say.
        ways = replace(ways, channels_last=False, compiled=False)
        note(f"computing in {ways} from here on: {REASON}")
    spread = recipe.sharding == "full" and ranks.world() > 1
    if together:
        ranks.synchronised(model)
    if together or spread:
        # Graphs would break at each exchange, and FSDP takes weights in the usual order alone.
        ways = replace(ways, compiled=False, channels_last=ways.channels_last and not spread)
    laid_out(model, ways)
    method = recipe.method.resolved(recipe.threat)
    examples = len(data.train) + (len(extra.examples) if extra else 0)
    spec = Spec(data.image_shape, slots, examples, data.num_classes, device, dtype)
    averages = Averages(model, recipe.averages, warm_start=recipe.averages_warm_start)
    for each in (model, *averages.models().values()) if spread else ():
        sharding.shard(each, blocks(each), device)
    job = Job(
        model=model,
        wrapped=ranks.wrapped(model),
        method=method,
        state=method.init(spec),
        optimizer=build_optimizer(recipe, model),
        factor=warmed_up(recipe.schedule.factor(), recipe.optimizer.warmup),
        averages=averages,
        perturbation=recipe.weight_perturbation,
        seed=recipe.seed,
        total_steps=recipe.total_steps,
        ways=ways,
        graphs=Graphs(model.net, slots) if ways.compiled else None,
        folding=folding_of(model, data.image_shape, device, dtype) if ways.folded and not spread else None,
        micro_batch=rows,
        least=least,
        recomputed=recomputed_blocks(recipe, model),
        finite=Finite(slots, device),
    )
    return job, batches


def check_auto(recipe: Recipe, device: torch.device) -> None:
    """Refuse to look for what fits where the memory's end is the process's.

    Raises:
        RecipeError: the recipe asks for it on the CPU, or on MPS, where the process would first swap.
    """
    if recipe.micro_batch == "auto" and device.type in ("cpu", "mps"):
        where = "on the CPU" if device.type == "cpu" else "on mps, whose memory is the machine's"
        raise RecipeError(
            f"micro_batch: auto asks a GPU what fits into its memory, and this run is {where}; give a number, like "
            "micro_batch=64, or micro_batch=null"
        )


def recomputed_blocks(recipe: Recipe, model: nn.Module) -> list[nn.Module]:
    """The blocks whose activations the recipe wants computed again, if any.

    Raises:
        RecipeError: the model has none.
    """
    if not recipe.activation_checkpointing:
        return []
    if not (found := blocks(model)):
        raise RecipeError(
            f"activation_checkpointing: {recipe.model.name} has no blocks whose activations could be computed again; "
            "use activation_checkpointing=false, and a smaller micro_batch to save memory"
        )
    return found


def synchronises(model: nn.Module, device: torch.device) -> bool:
    """Whether BatchNorm can be synchronised: there is some, on several ranks, and they are GPUs (torch's condition)."""
    return ranks.world() > 1 and device.type in devices.EXCHANGES and has_batchnorm(model)


def build_model(recipe: Recipe, data: ImageData | DatasetCard, split: Examples | None = None) -> models.Classifier:
    """The recipe's network, its normalisation first, with weights drawn under the recipe's seed.

    Args:
        recipe: names the network.
        data: gives its channels and classes.
        split: the training images, for `normalize: data`; without them weights and normalisation are left to a state
            dict, and nothing is fetched.
    """
    settings = {**recipe.model.settings}
    if split is None and "pretrained" in settings:
        settings["pretrained"] = False
    normalize: dict[str, Any] = {}
    if recipe.normalize == "per_image":
        normalize = {"per_image": True}
    elif recipe.normalize == "data":
        normalize = (
            channel_statistics(split) if split else {"mean": [0.0] * data.channels, "std": [1.0] * data.channels}
        )
    elif recipe.normalize == "pretrained":
        normalize = (
            expected_normalization(recipe, data.channels)
            if split
            else {"mean": [0.0] * data.channels, "std": [1.0] * data.channels}
        )
    elif recipe.normalize != "none":
        if {len(recipe.normalize.mean), len(recipe.normalize.std)} != {data.channels}:
            raise RecipeError(
                f"normalize: mean and std need one number for each of the {data.channels} channels of {data.name}, got "
                f"{len(recipe.normalize.mean)} and {len(recipe.normalize.std)}; write so many in "
                '"normalize={mean: [...], std: [...]}", or normalize=data'
            )
        normalize = {"mean": recipe.normalize.mean, "std": recipe.normalize.std}
    torch.manual_seed(derive(recipe.seed, "weights"))
    try:
        return models.build(
            recipe.model.name,
            num_classes=data.num_classes,
            in_channels=data.channels,
            **normalize,
            **settings,
        )
    except UsageError as error:
        raise RecipeError("model: ", error) from None
    except (ValueError, RuntimeError, MemoryError) as error:
        # RuntimeError is what torch raises where the memory does not suffice.
        raise RecipeError(f"model: {str(error).partition(chr(10))[0] or type(error).__name__}") from None


def channel_statistics(split: Examples) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel over a split, in units of [0, 1]: exact, from the 256 counts.

    Of stored images only 2,048 are decoded for it, spread evenly over the split.
    """
    if isinstance(split, LazySplit) and len(split) > SAMPLE:
        split = split.take(torch.linspace(0, len(split) - 1, SAMPLE).long())
    mean, std, levels = [], [], torch.arange(256, dtype=torch.float64) / 255
    for channel in split.images.unbind(1):
        share = torch.bincount(channel.flatten().int(), minlength=256).double() / channel.numel()
        mean.append(float(share @ levels))
        std.append(float((share @ (levels - mean[-1]) ** 2).sqrt()))
    return {"mean": mean, "std": std}


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the recipe's settings. Fused where that form can skip a bad step without the device being asked."""
    settings = recipe.optimizer
    lr = settings.lr * (recipe.batch_size / settings.lr_batch_size if settings.lr_batch_size else 1)
    # The weights of convolution and linear layers are the only trained tensors of two or more dimensions.
    trained = sharding.parts(p for p in model.parameters() if p.requires_grad)
    decayed = [p for p in trained if settings.decay_on == "all" or p.ndim > 1]
    spared = [p for p in trained if settings.decay_on == "weights" and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [{**group, "base_lr": lr} for group in groups if group["params"]],
        lr=lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        fused=all(devices.skips_steps(p.device) for p in trained),
    )
