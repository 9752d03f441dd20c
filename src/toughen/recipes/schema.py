"""The recipe: one validated, frozen object that says everything about a run.

    recipe = Recipe(data="mnist5k", model="small_cnn", method=Free(replays=4), threat="linf:0.2", steps=1600)
    recipe = load("cifar10-free", ["method.replays=4", "threat=linf:4/255"])      # shipped, with changes

Numbers may be text (`8/255`, `1e-3`). A section that is just a name takes its defaults: `model: wrn-28-10`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from toughen.attacks import AttackSpec
from toughen.data.loading.batches import check_repeats, labelled_rows
from toughen.evaluation import suites
from toughen.methods.wrapper import AnyMethod, nested
from toughen.models.inputs import check_radius
from toughen.models.registry import find as find_model
from toughen.models.registry import try_options
from toughen.optim.ema import average_name
from toughen.optim.schedules import SCHEDULES, Factor
from toughen.recipes.data_settings import DataSettings, named_section
from toughen.settings import (
    Count,
    Decay,
    NamedCall,
    NonNegative,
    NonNegativeCount,
    Number,
    Positive,
    Settings,
    Some,
    Whole,
    at_key,
    known,
    shown,
)
from toughen.threat import Threat


class ModelSpec(NamedCall, frozen=True):
    """A network in `MODELS`, its options, and what training starts from.

    Attributes:
        weights: a file with trained weights (see `models.load_weights`); null for weights drawn under the seed. A head
            for other classes is left out, and the new one drawn. What their shapes show of the network's options is
            taken from them where the recipe does not say it.
        key: the beginning of the tensors' names in that file, such as state_dict_ema, where several groups fit.
        freeze: train the head alone, the last linear layer, and hold everything below it as it is.
    """

    given: ClassVar = ("num_classes", "in_channels")
    weights: str | None = None
    key: str | None = None
    freeze: bool = False

    @classmethod
    def find(cls, name: str) -> Any:
        """The builder of that name."""
        return find_model(name)

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        try:
            try_options(self.name, self.settings)
        except (TypeError, RuntimeError, ArithmeticError) as error:
            given, said = [f"{key}={shown(value)}" for key, value in self.settings.items()], str(error).partition("\n")
            raise ValueError(f"{self.name} cannot be built with {', '.join(given)}: {said[0]}; give others") from None
        if self.key is not None and self.weights is None:
            raise ValueError(f"key is {shown(self.key)}, and goes with weights, a file; give weights too, or key: null")
        return self


class ChannelStatistics(Settings, frozen=True):
    """Normalisation by given numbers: (x - mean) / std per channel, in units of [0, 1]."""

    mean: Annotated[tuple[Number, ...], Some]
    std: Annotated[tuple[Positive, ...], Some]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one of each a channel")
        return self


class OptimizerSettings(Settings, frozen=True):
    """Stochastic gradient descent.

    Attributes:
        lr: base learning rate.
        lr_batch_size: the batch size that `lr` is meant for; the rate is scaled by batch_size / lr_batch_size (linear
            scaling rule, Goyal et al. 2017; Free, appendix B). null: `lr` as it stands.
        momentum: of SGD, 0 for none.
        nesterov: Nesterov's form of it.
        weight_decay: coefficient of theta in the gradient.
        decay_on: "all" parameters, or "weights": those of convolution and linear layers only, as in Free's CIFAR code.
        warmup: share of the budget over which the rate first rises linearly from zero, before the schedule begins.
    """

    lr: Positive
    lr_batch_size: Count | None = None
    momentum: Decay = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    decay_on: Literal["all", "weights"] = "all"
    warmup: Decay = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true contradicts momentum: 0; give a momentum, such as 0.9")
        return self


class ScheduleSpec(NamedCall, frozen=True):
    """A schedule in `SCHEDULES` and its settings; shares of the budget count optimiser steps."""

    @classmethod
    def find(cls, name: str) -> Callable[..., Factor]:
        """The schedule of that name."""
        return SCHEDULES[known(name, SCHEDULES, "schedule")]

    def factor(self) -> Factor:
        """The closed form: share of the budget -> factor of the base rate."""
        return self.find(self.name)(**self.settings)


class SelectionSettings(Settings, frozen=True):
    """How `best` is chosen: by an accuracy on the validation split, never on test data.

    Attributes:
        by: robust_accuracy or clean_accuracy; of equals the higher clean accuracy, then the later step. null for what
            the method asks for: robust_accuracy, or clean_accuracy where it asks for no robustness, as natural training
            (`methods.base.Method.robust_training`).
        suite: the attack; PGD-40 as in Limits, section 3.1.
        every: optimiser steps between validations, rounded up to whole batches; null for a tenth of the budget. There
            is always one after the last step.
    """

    by: Literal["robust_accuracy", "clean_accuracy"] | None = None
    suite: str = "pgd-40"
    every: Count | None = None


class WeightPerturbation(Settings, frozen=True):
    """Adversarial weight perturbation (Wu et al. 2020, AWP) around every step of any method: see `training.weights`.

    Attributes:
        gamma: how far each weight tensor is moved, as a share of its norm; the paper's is 0.01 for PGD training and
            0.005 for TRADES.
        start: share of the budget before it begins.
    """

    gamma: Positive = 0.005
    start: Decay = 0.0


def _run_name(name: str) -> str:
    # Run folders are called so where none is named.
    if not name.isprintable() or re.search(r"[/\\\\]", name) or not name.strip(".") or len(name) > 200:
        raise ValueError(
            f"{shown(name)} cannot be a folder's name; write letters, digits, '.', '_' or '-', like mine-1"
        )
    return name


def _device(name: str) -> str:
    if not re.fullmatch("auto|cpu|mps|(cuda|xpu)(:[0-9]{1,2})?", name):
        raise ValueError(f"{shown(name)} is not a device; write auto, cpu, cuda, cuda:NUMBER, mps, xpu or xpu:NUMBER")
    return name


def _normalize(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ChannelStatistics.model_validate(value)
    return value if isinstance(value, ChannelStatistics) else known(str(value), NORMALIZE, "normalisation")


NORMALIZE = ("none", "data", "per_image", "pretrained")


class Recipe(Settings, frozen=True):
    """Everything about a run.

    Attributes:
        name: what to call it.
        data: see `DataSettings`.
        model: a network and its options.
        normalize: the model's first layer: "none", "data" (mean and deviation of the training images per channel),
            "per_image" standardisation, "pretrained" (what the model's pretrained weights were trained with), or
            {mean: [...], std: [...]}.
        method: a training method and its settings.
        threat: the ball, like linf:8/255, for training and for evaluation.
        batch_size: images in a batch, over all ranks together. A short last batch of an epoch on which the network
            cannot be trained, as on one image with BatchNorm, is left out: other images in each epoch.
        micro_batch: images of each rank in one pass; a larger batch goes through in parts, whose gradients add up
            (gradient accumulation): the same step in less memory, but BatchNorm knows the parts alone. null for all of
            them; "auto" finds the most that a GPU can hold, and the run keeps to it.
        activation_checkpointing: compute what the model's blocks hold again in each backward pass, in place of keeping
            it: the same bits and far less memory for a third more work.
        steps: the budget in optimiser steps, replays included; rounded up to whole batches.
        optimizer: see `OptimizerSettings`.
        schedule: of the learning rate, by name: see `schedule.py`.
        averages: decay rates of weight averages, kept beside the weights; the first is what is evaluated by default.
        averages_warm_start: let the rates rise from 0.1 to their values over the first steps (see `averaging`).
        weight_perturbation: see `WeightPerturbation`; null for none.
        selection: see `SelectionSettings`.
        overfitting_every: optimiser steps between checks for catastrophic overfitting, rounded up to whole batches,
            where the method trains in a ball; with one after the last step. 0 for none; null for as often as costs 2 %
            (see `training.overfitting`).
        batchnorm: by what BatchNorm normalises where there are several ranks: "per_rank", each by its own part of the
            batch; "synchronised", all by the whole batch, on GPUs.
        sharding: "none", every rank holds the whole model; "full", each a part of it and of what the optimiser keeps,
            for models that are too large for a device (see `toughen.parallel.sharding`).
        fast: how a run chooses what makes it faster (`training.acceleration` has the table): "rule", by the device, a
            CPU computing as plainly as ever; "measure", by timing before it trains; "off", the same bits at every run.
        precision: "fp32", or "bf16" for mixed precision (autocast) in training; "auto" leaves it to `fast`.
            Evaluation is always fp32.
        device: "auto" (a GPU if there is one: by CUDA, else Apple's, else Intel's), or torch's name for one.
        seed: of every random draw.
        log_every: optimiser steps between lines of the log, rounded up to whole batches.
        save_every: optimiser steps between checkpoints, rounded up to whole batches.
    """

    name: Annotated[str, AfterValidator(_run_name)] = "custom"
    data: Annotated[DataSettings, named_section("source")]
    model: ModelSpec
    normalize: Annotated[
        Literal["none", "data", "per_image", "pretrained"] | ChannelStatistics, BeforeValidator(_normalize)
    ] = "none"
    method: AnyMethod
    threat: Annotated[Threat, AfterValidator(check_radius)]
    batch_size: Count = 128
    micro_batch: Count | Literal["auto"] | None = None
    activation_checkpointing: bool = False
    steps: Count
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.1)
    schedule: ScheduleSpec = ScheduleSpec(name="constant")
    averages: tuple[Decay, ...] = ()
    averages_warm_start: bool = False
    weight_perturbation: WeightPerturbation | None = None
    selection: Annotated[SelectionSettings, named_section("suite")] = SelectionSettings()
    overfitting_every: NonNegativeCount | None = None
    batchnorm: Literal["per_rank", "synchronised"] = "per_rank"
    sharding: Literal["none", "full"] = "none"
    fast: Literal["rule", "measure", "off"] = "rule"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Annotated[str, AfterValidator(_device)] = "auto"
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    log_every: Count = 50
    save_every: Count = 500

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(map(average_name, self.averages))) < len(self.averages):
            raise ValueError(f"averages {list(self.averages)}: the same rate twice; list each rate once")
        for depth, method in enumerate(nested(self.method), 1):
            scale, ball = getattr(method, "radius_scale", 1.0), getattr(method, "threat", None) or self.threat
            what = "threat" if scale == 1 else f"threat times radius_scale, which is {scale:g}"
            with at_key(f"{'method.' * depth}{what}"):
                check_radius(ball.scaled(scale))
            for key, value in method:
                with at_key(f"{'method.' * depth}{key}"):
                    if isinstance(value, AttackSpec):
                        value.check_norm(ball)
        with at_key("selection.suite"):
            suites.find(self.selection.suite, self.threat)
        if self.micro_batch and (whole := next((m for m in nested(self.method) if not m.divisible), None)):
            raise ValueError(
                f"micro_batch is {self.micro_batch}, but method {whole.name} mixes images of the whole batch after its "
                "attack; use micro_batch: null, or mixup around adversarial, which mixes before it"
            )
        if self.sharding == "full":
            self._check_shardable()
        if self.data.repeats > 1:
            extra = self.data.extra
            check_repeats(labelled_rows(self.batch_size, extra.labelled if extra else 1.0), self.data.repeats)
            if "index" in self.method.state_kinds.values():
                raise ValueError(
                    f"data.repeats is {self.data.repeats}, but method {self.method.name} keeps something for each "
                    "image, which must stand once in a batch; use data.repeats: 1"
                )
        return self

    def _check_shardable(self) -> None:
        if self.weight_perturbation:
            raise ValueError(
                "sharding is full, and weight_perturbation moves whole weights; use weight_perturbation: null, or "
                "sharding: none"
            )
        if self.method.second_derivatives:
            raise ValueError(
                f"sharding is full, and method {self.method.name} differentiates gradients, for which a pass would "
                "have to keep all weights; use sharding: none, or a method without (alignment: 0)"
            )
        if self.micro_batch == "auto":
            raise ValueError(
                "sharding is full, and micro_batch: auto tries what does not fit, where a rank that fails leaves the "
                "others waiting; give a number, like micro_batch: 64"
            )

    @property
    def batches(self) -> int:
        """Minibatches of the whole run."""
        return -(-self.steps // self.method.steps_per_batch)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run: the budget, rounded up to whole batches."""
        return self.batches * self.method.steps_per_batch

    @property
    def natural_steps(self) -> float:
        """Predicted cost of training in natural steps (see `counting`), counted on a tiny model."""
        method = self.method.resolved(self.threat)
        steps = method.predicted(self.batches)
        if self.weight_perturbation:
            twice = method.passes(calls=2).natural_steps - method.passes().natural_steps
            steps += twice * self.batches * (1 - self.weight_perturbation.start)
        return steps

    @property
    def selected_by(self) -> Literal["robust_accuracy", "clean_accuracy"]:
        """The accuracy on the validation split by which `best` is chosen."""
        return self.selection.by or ("robust_accuracy" if self.method.robust_training else "clean_accuracy")

    @property
    def headline(self) -> str:
        """The candidate that is evaluated by default: the first average, or the weights."""
        return average_name(self.averages[0]) if self.averages else "weights"
