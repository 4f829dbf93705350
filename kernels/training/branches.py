"""What `training_branches` gives; imports Numba."""

from sumix_kernels.training.convolution import convolution
from sumix_kernels.training.feed_forward import feed_forward, masked_norm
from sumix_kernels.training.front_end import front_end
from sumix_kernels.training.mixer import summary_mixer
from sumix_kernels.training.separable_front_end import separable_front_end

__all__ = ["convolution", "feed_forward", "front_end", "masked_norm", "separable_front_end", "summary_mixer"]
