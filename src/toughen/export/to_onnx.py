"""A model as an ONNX file, checked by running it.

The file takes `images`, (N, C, H, W) float32 in [0, 1] with any N, and gives `logits`, (N, K): normalisation is inside,
as it is in the model.

    difference = write_onnx(model, Path("model.onnx"), images)       # the largest difference of a logit
"""

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.errors import Option, UsageError

REMEDY = ("; leave onnx out of ", Option("formats"))

TOLERANCE = 1e-5
"""For logits up to 1; in proportion for larger ones, whose last bits are larger too."""

NEEDED = ("onnx", "onnxscript")
BATCHES = (8, 1, 5)


def require() -> None:
    """Say what is missing before any work is done.

    Raises:
        ValueError: the extra is not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs the package {' and '.join(missing)}; type: pip install 'toughen[onnx]'")


def write_onnx(model: nn.Module, path: Path, images: Tensor) -> float:
    """Write a model as ONNX and run the file on images, 8, 1 and 5 at a time.

    Args:
        model: in inference mode, on the CPU.
        path: of the file.
        images: (8, C, H, W) float32 in [0, 1].

    Returns:
        The largest difference of a logit between the file and the model.

    Raises:
        ValueError: the extra is missing, torch cannot express the model in ONNX, or the logits differ by more than
            1e-5 (of the largest logit, where that exceeds 1).
    """
    require()
    _translate(model, path, images)
    with _refusals():
        run = _runner(path)
        worst, largest = _compare(model, run, images)
    if not worst <= TOLERANCE * largest:
        raise UsageError(
            f"the ONNX file gives other logits than the model: they differ by {worst:.2g}, and "
            f"{TOLERANCE * largest:.2g} is allowed; nothing is exported",
            *REMEDY,
        )
    return worst


def _compare(model: nn.Module, run: Callable[[np.ndarray], np.ndarray], images: Tensor) -> tuple[float, float]:
    """The largest difference of a logit, and the largest logit, at least 1."""
    worst, largest = 0.0, 1.0
    for size in BATCHES:
        x = images[:size]
        with torch.no_grad():
            expected = model(x).double().numpy()
        given = np.asarray(run(x.numpy()), dtype=np.float64)
        difference = float(np.abs(given - expected).max()) if given.shape == expected.shape else float("inf")
        # max() would pass over a NaN.
        worst = difference if not difference <= worst else worst
        largest = max(largest, float(np.abs(expected).max()))
    return worst, largest


def _translate(model: nn.Module, path: Path, images: Tensor) -> None:
    from torch.export import Dim
    from torch.onnx import OnnxExporterError

    onnx: Any = importlib.import_module("onnx")
    try:
        with _quiet():
            torch.onnx.export(
                model,
                (images[:2],),
                path,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (OnnxExporterError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"torch cannot write this model as ONNX: {reason[:200]}", *REMEDY) from None
    found = onnx.load(path)
    _forget_places(found)
    onnx.checker.check_model(found)
    onnx.save(found, path)


def _forget_places(found: Any) -> None:
    """Drop the exporter's notes: they hold the paths of this machine."""
    for graph in (found.graph, *found.functions):
        named = [*graph.node, *graph.value_info]
        if graph is found.graph:
            named += [graph, *graph.input, *graph.output, *graph.initializer]
        for item in named:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")


def _runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Images to logits, by onnxruntime where it is installed, else by onnx's slow reference."""
    if importlib.util.find_spec("onnxruntime") is not None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    else:
        session = importlib.import_module("onnx.reference").ReferenceEvaluator(str(path))
    return lambda x: session.run(["logits"], {"images": x})[0]


@contextmanager
def _refusals() -> Iterator[None]:
    """onnxruntime's own exceptions, which have no parent of their own, as a sentence."""
    kinds: tuple[type[Exception], ...] = ()
    if importlib.util.find_spec("onnxruntime") is not None:
        state = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
        kinds = tuple(item for item in state if isinstance(item, type) and issubclass(item, Exception))
    try:
        yield
    except kinds as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"onnxruntime does not run this model: {reason[-200:]}", *REMEDY) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
