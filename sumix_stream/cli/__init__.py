"""The commands behind bin/ and the console script `sumix`: arguments in, one call, print."""

import os

# Of OpenMP's threads, where others share their cores: without it they spin for milliseconds at the end of each short
# operation, waiting for one that cannot run, and training beside another program took 70 times as long. Alone it
# takes a tenth longer with it. It is read when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
