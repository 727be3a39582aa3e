"""The eager backend: vectorised PyTorch, for the CPU and for devices that have float64 but no Triton.

The method in the order of the paper: `dyseg` cuts the video into segments, `budgets` shares out the tokens to
keep, `salient` picks them by attention (ATS), `peaks` and `merge` by density (DTM); `pipeline` puts them together.
`gradient` is the backward pass.
"""

from fastvid_kernels.eager.gradient import prune_backward as prune_backward
from fastvid_kernels.eager.pipeline import prune as prune
