"""The hook in DDP's conventional form, for frameworks that call `ddp.register_comm_hook(state, lgreco.hook)`."""

# No postponed annotations here: DDP compares them with the classes themselves.
from typing import Any

import torch
import torch.distributed as dist

from lgreco.state import State


def hook(state: State, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Averages one bucket over all ranks on the native engine; Python runs once a bucket, around it.

    Args:
        state: made as `lgreco.State(config, process_group)`; learns the layers from the DDP module at its first bucket.
        bucket: flat gradients of several layers, [numel], averaged in place.

    Returns:
        Future of the averaged bucket, [numel], same dtype.
    """
    return state._run(bucket).then(_value)


def _value(future: Any) -> Any:
    return future.value()
