"""What arrays a configuration asks for, compared with a file's header before anything of that size is made."""

from pathlib import Path

from sumix_stream.checkpoint.arrays import Shapes
from sumix_stream.checkpoint.layout import CheckpointError
from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.features import NUM_BINS


def check_depth(found: Shapes, config: ModelConfig, path: Path) -> None:
    """Raise CheckpointError for more layers than the file has arrays: counting their shapes would take for ever."""
    layers = {"encoder.num_layers": config.encoder.num_layers, "predictor.num_layers": config.predictor.num_layers}
    for name, number in layers.items():
        if number > len(found):
            raise CheckpointError(
                f"{path} holds another model than the configured one ({len(found)} arrays, {name} {number}): "
                "use the configuration and tokenizer it was trained with, or another directory"
            )


def check_shapes(found: Shapes, expected: Shapes, path: Path) -> None:
    """Raise CheckpointError where names or shapes of a file are not those of the configured model."""
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not in the model" for name in found if name not in expected]
    faults += [
        f"{name} is {found[name]}, the model's is {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{path} holds another model than the configured one ({'; '.join(faults[:3])}{more}): "
            "use the configuration and tokenizer it was trained with, or another directory"
        )


def transducer_shapes(config: ModelConfig, vocab_size: int) -> Shapes | None:
    """Shapes by name of a transducer's weights and buffers; None for an encoder that only PyTorch knows."""
    encoder, predictor, joint = config.encoder, config.predictor, config.joiner_dim
    shapes = _layered(encoder)
    if shapes is None:
        return None
    dim, hidden = encoder.dim, predictor.hidden_dim
    shapes |= _lstm(predictor, vocab_size) | _linear("joiner.project_encoder", joint, dim)
    shapes |= {"joiner.project_predictor.weight": (joint, hidden)} | _linear("joiner.output", vocab_size, joint)
    shapes |= _linear("simple_am", vocab_size, dim) | _linear("simple_lm", vocab_size, hidden)
    return shapes | (_linear("ctc_head", vocab_size, dim) if config.ctc else {})


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _lstm(config: PredictorConfig, vocab_size: int) -> Shapes:
    hidden, shapes = config.hidden_dim, {"predictor.embedding.weight": (vocab_size, config.embed_dim)}
    for layer in range(config.num_layers):
        inputs = hidden if layer else config.embed_dim
        shapes |= {f"predictor.lstm.weight_ih_l{layer}": (4 * hidden, inputs)}
        shapes |= {f"predictor.lstm.weight_hh_l{layer}": (4 * hidden, hidden)}
        shapes |= {f"predictor.lstm.bias_{kind}_l{layer}": (4 * hidden,) for kind in ("ih", "hh")}
    return shapes


def _layered(config: EncoderConfig) -> Shapes | None:
    dim, channels, front = config.dim, config.subsampling_channels, "encoder.subsampling"
    mixer = _mixer(config)
    if config.kind not in ("conformer", "branchformer") or mixer is None:
        return None
    shapes: Shapes = {f"{front}.feature_{name}": (NUM_BINS,) for name in ("mean", "std")}
    convolutions = {"conv1": (1, 3), "conv2": (channels, 3)}  # channels that each reads, and taps either way
    if config.subsampling == 8:
        separable = {"depthwise": (1, 3), "pointwise": (channels, 1)}
        later = {f"stages.{stage}.{name}": sizes for stage in (0, 1) for name, sizes in separable.items()}
        convolutions = {"conv1": (1, 3)} | later
    for name, (inputs, taps) in convolutions.items():
        shapes |= {f"{front}.{name}.weight": (channels, inputs, taps, taps), f"{front}.{name}.bias": (channels,)}
    bins = -(-NUM_BINS // config.subsampling)
    shapes |= _linear(f"{front}.out", dim, channels * bins) | _norm(f"{front}.norm", dim)
    layer = mixer | (_norm("mixer_norm", dim) if mixer else {}) | _norm("conv_norm", dim) | _norm("norm", dim)
    inner, outer = (dim, 2 * dim) if config.kind == "conformer" else (config.cgmlp_dim // 2, config.cgmlp_dim)
    layer |= {"conv.weight": (inner, config.conv_kernel), "conv.bias": (inner,)}
    layer |= _linear("conv.expand", outer, dim) | _norm("conv.norm", inner) | _linear("conv.out", dim, inner)
    if config.kind == "conformer":
        for name in ("ffn1", "ffn2"):
            layer |= _norm(f"{name}.0", dim) | _linear(f"{name}.1", config.ffn_dim, dim)
            layer |= _linear(f"{name}.4", dim, config.ffn_dim)
    elif mixer:
        layer |= _linear("merge", dim, 2 * dim)
    for number in range(config.num_layers):
        shapes |= {f"encoder.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def _mixer(config: EncoderConfig) -> Shapes | None:
    dim, heads, variant = config.dim, config.num_heads, config.summary_variant
    if config.mixer == "attention":
        return _linear("mixer.projection", 3 * dim, dim) | _linear("mixer.out", dim, dim)
    if config.mixer == "none":
        return {}
    if config.mixer != "summary" or variant not in ("fast", "expdecay", "lite", "full"):
        return None
    deep = config.mlp_layers == 2 and variant in ("full", "lite")
    shapes = {} if deep and variant == "lite" else _linear("mixer.merge_summary", dim, dim)
    if variant != "lite":
        shapes |= {"mixer.merge_local.weight": (dim, dim)}
    if variant != "full" and not deep:
        return shapes | _linear("mixer.projection", dim if variant == "lite" else 2 * dim, dim)
    for branch in ("local", "summary") if variant == "full" else ("summary",):
        for name in (f"{branch}_hidden", f"{branch}_projection") if deep else (f"{branch}_projection",):
            shapes |= {f"mixer.{name}.weight": (heads, dim // heads, dim // heads), f"mixer.{name}.bias": (dim,)}
        shapes |= _norm(f"mixer.{branch}_norm", dim) if config.summary_norm else {}
    return shapes
