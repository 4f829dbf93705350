"""Modules to ONNX graphs and torch.export programs, for any number of streams."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

MAX_STREAMS = 65_536  # in a batch; torch.export asks for a bound
MAX_FRAMES = 1 << 20  # encoder frames of a whole utterance, likewise
FEATS, FRAMES = "feats", "frames"
Axes = Sequence[int]  # of each input, the dimension that counts streams


def export_program(
    module: nn.Module, example: Sequence[Tensor], axes: Axes, steps: Mapping[int, int] | None = None
) -> torch.export.ExportedProgram:
    """The module as a program.

    Args:
        example: inputs of two streams, as one would be taken for a constant.
        steps: of inputs by number, whose second dimension is time and open too: it is a multiple of so much.
    """
    with torch.no_grad(), quiet():
        return torch.export.export(module, tuple(example), dynamic_shapes=_dynamic(module, axes, steps or {}))


def export_onnx(
    module: nn.Module,
    example: Sequence[Tensor],
    axes: Axes,
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, object],
    steps: Mapping[int, int] | None = None,
) -> None:
    """Write the module as one ONNX file, weights and metadata inside. `example` and `steps` as for `export_program`."""
    # Given the module itself, torch.onnx would take a number of streams that cannot be kept open for a constant.
    program = export_program(module, example, axes, steps)
    with torch.no_grad(), quiet():
        names = {"input_names": list(inputs), "output_names": list(outputs)}
        torch.onnx.export(program, dynamo=True, external_data=False, verbose=False, **names).save(path)
    annotate(path, metadata)


def annotate(path: Path, metadata: Mapping[str, object]) -> None:
    """Give an ONNX file these metadata and no others; and hold it to the standard."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    for value in (*model.graph.input, *model.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:  # the exporter numbers what is open
                dim.dim_param = "frames" if axis == 1 and value.name in (FEATS, FRAMES) else "streams"
    del model.graph.value_info[:]
    for node in model.graph.node:  # where each came from in the exporter's sources: half of a small file
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _dynamic(module: nn.Module, axes: Axes, steps: Mapping[int, int]) -> tuple:
    streams = torch.export.Dim("streams", min=1, max=MAX_STREAMS)
    shapes = [{axis: streams} for axis in axes]
    for number, step in steps.items():
        shapes[number][1] = step * torch.export.Dim("frames", min=1, max=MAX_FRAMES)
    code = type(module).forward.__code__
    num_named = code.co_argcount - 1
    takes_rest = bool(code.co_flags & 0x04)  # CO_VARARGS: the exporter wants what *state collects as one tuple
    return (*shapes[:num_named], tuple(shapes[num_named:])) if takes_rest else tuple(shapes)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own deprecations, on packages that are not installed, and on each step."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
