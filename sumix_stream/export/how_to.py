"""What a bundle's card says on running it, by format."""

from sumix_stream.timebase import format_duration

INT8 = """
Products take int8 weights and quantise their inputs while they run, with one scale for all streams of a batch: a stream
may differ in the last digits with the streams it shares a batch with. fp32 files do not. Weights and inputs are
unsigned, so sums are exact on every processor; signed weights would overflow on x86-64 without VNNI.
"""


SECOND_PASS = """
`whole.onnx` is the encoder under full context, by which this project hears a segment again when it ends
(`second_pass`): `feats (streams, frames, 80)`, frames a multiple of four, `lengths (streams)` -> `frames`,
`frame_lengths`. Others do not need it.
"""


def sherpa_onnx(chunk_seconds: float) -> str:
    return f"""
Runs in stock sherpa-onnx (tested with 2.0.1), without this project:

```python
import sherpa_onnx

recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    tokens="tokens.txt", encoder="encoder.onnx", decoder="decoder.onnx", joiner="joiner.onnx"
)
```

    sherpa-onnx-online-websocket-server --tokens=tokens.txt --encoder=encoder.onnx --decoder=decoder.onnx \\
      --joiner=joiner.onnx --port=6006

sherpa-onnx decodes a chunk only when a feature frame beyond it is there, and never a part of a chunk. So after the last
sample send {format_duration(chunk_seconds)} and 20 ms more of zeros, or the last words are lost; the server adds
`--end-tail-padding`, 0.8 s unless told otherwise. At most 10 tokens are emitted an encoder frame. The filter bank is
set up as such models need it; mean and deviation are inside encoder.onnx.
"""


_FEATURES = """
Features are those of kaldi-native-fbank: 80 bins, librosa's mel filters from 0 to 8000 Hz, Hann windows, 25 ms every 10
ms, snip_edges false, no dither, no DC removal, preemphasis 0.97, samples in [-1, 1]. Mean and deviation are inside.
"""

ONNX = (
    """
`encoder.onnx` takes one chunk of any number of streams: `feats (streams, window, 80)`, `lengths (streams)`, fewer than
a window only where a stream ends, and the state; it returns `frames`, `frame_lengths` and `next.<state>`. A new
stream's state is zeros; rows of streams of any age may be joined and taken apart on the first axis. `predictor.onnx`
takes `tokens (streams)`, first blank (0), with `hidden` and `cell`; `joiner.onnx` takes a frame and the predictor's
output of each stream and returns logits. Window, blank and the shapes of the state are in each file's metadata.
"""
    + _FEATURES
)

PROGRAM = (
    """
`torch.export.load("encoder.pt2").module()` takes one chunk of any number of streams: features (streams, window, 80),
lengths (streams), fewer than a window only where a stream ends, and the state's tensors in the order of
`geometry.json`, an extra file inside each program; it returns frames, their lengths and the next state. A new stream's
state is zeros. `predictor.pt2` takes tokens (streams), first blank (0), hidden and cell; `joiner.pt2` a frame and the
predictor's output of each stream.
"""
    + _FEATURES
)
