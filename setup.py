import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "sumix_stream" / "__init__.py").read_text(), re.M).group(1)

# What trains and evaluates, and runs models that the compiled kernels do not.
TRAIN = [
    "torch>=2.6",  # networks, autograd
    "triton>=3.4; platform_system == 'Linux' and platform_machine == 'x86_64'",  # GPU kernels; torch brings it too
    "torchaudio>=2.6",  # lhotse's resampling of training audio; a loss and a resampler that tests compare with
    "lhotse>=1.27",  # manifests, Shar, reading and perturbing audio, LibriSpeech preparation
    "filelock>=3.12",  # one of many processes indexes a manifest (torch brings it too)
    "urllib3>=1.26",  # lhotse 1.33 imports it without asking for it
    "lightning-fabric>=2.4",  # device, precision and strategy of a training run
    "tensorboard>=2.14",  # curves of a training run
    "pillow>=10",  # pictures of a run's utterances; tensorboard needs it too
    "tqdm>=4.65",  # progress bars
    "kaldialign>=0.9",  # word alignments behind WER
]

setup(
    name="sumix-stream",
    version=VERSION,
    description="Streaming speech recognition with SummaryMixing conformer transducers: linear time, constant state",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The folder kernels/ is imported as sumix_kernels: the bare name `kernels` is another package's.
    packages=[
        *find_packages(include=["sumix_stream", "sumix_stream.*"]),
        "sumix_kernels",
        *(f"sumix_kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"sumix_kernels": "kernels"},
    entry_points={"console_scripts": ["sumix = sumix_stream.cli.main:main"]},
    package_data={"sumix_stream.serve": ["page/*", "PROTOCOL.md"]},
    # Ranges say what ought to work; constraints.txt pins what bin/demo and bin/test install and what is tested.
    # What recognises: sx.load, bin/decode and bin/stream_decode on files, bin/serve. No PyTorch.
    install_requires=[
        "numpy>=1.26",  # audio, resampling, filter bank, searches, checkpoints' arrays
        # Compiles what a CPU does for a stream (kernels/cpu) and between products in training (kernels/training); where
        # it does not install, PyTorch computes the same in more time.
        "numba>=0.62",
        "kaldi-native-fbank>=1.20",  # the filter bank's mel filters
        "soundfile>=0.12",  # reads WAV, FLAC, Opus, MP3
        "sentencepiece>=0.2",  # tokenizer
        "safetensors>=0.4.3",  # checkpoints without pickle
        "pyyaml>=6.0",  # recipes and checkpoint configurations
        "websockets>=16",  # the server's websockets
        "aiohttp>=3.12",  # its HTTP: uploads in parts, server-sent events
        "prometheus-client>=0.20",  # the server's /metrics
    ],
    extras_require={
        # Used as an RNN-T backend where importable; all features work without it. Nothing can be listed here: its
        # wheels are built for exact torch versions and live on its project's own page, not on PyPI.
        "k2": [],
        "train": TRAIN,
        # torch.onnx writes through onnxscript; each export is run in onnxruntime before it is given away.
        "export": [*TRAIN, "onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
        "onnx": ["onnxruntime>=1.20"],  # runs exported bundles
        "demo": ["espeakng-loader>=0.2.4"],  # eSpeak NG, which speaks the corpus of egs/mini
        # M4A, MP4, WebM, AAC and other files that libsndfile does not read; its wheels hold FFmpeg's libraries.
        "media": ["av>=14.2"],
        "microphone": ["sounddevice>=0.5"],  # bin/stream_decode --microphone; needs the system's PortAudio on Linux
        "bench": ["matplotlib>=3.8"],  # plots of bin/bench
        # The pages of docs/: the builder, its theme (maintained until May 2027; Zensical is to follow), and
        # the reference of the public functions from their docstrings.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings>=1.0", "mkdocstrings-python>=2.0"],
        "test": [
            *("pytest>=8.1", "pytest-xdist>=3.5", "pytest-timeout>=2.2", "hypothesis>=6.100", "ruff>=0.9"),
            # The stock recogniser and server that run our bundles (some before 2.0 emit at most one token a frame).
            *("sherpa-onnx>=2.0", "sherpa-onnx-bin>=2.0"),
            "openai>=2",  # an unmodified client of the server's OpenAI API
            "av>=14.2",  # makes and reads the files of the extra `media`
            "wyoming>=1.10",  # the client of Wyoming that the server is tested with; it has no dependencies
        ],
    },
)
