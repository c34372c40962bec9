"""lgreco: compressed gradient exchange for DistributedDataParallel on networks too slow for dense training.

    state = lgreco.attach(ddp)          # one line after wrapping the model

`attach` and `State` are the whole of it; `Config` holds the settings, `parse` reads a choice such as
`quantize(bits=4, block=512)`.
"""

from lgreco.info import check_torch

check_torch()

from lgreco.advisor import advise  # noqa: E402  # the native module must not be loaded under the wrong torch
from lgreco.attach import attach  # noqa: E402
from lgreco.choice import Choice, Dense, LowRank, Quantize, RandomK, TopK, parse  # noqa: E402
from lgreco.config import Config  # noqa: E402
from lgreco.hook import hook  # noqa: E402
from lgreco.launch import init_process_group  # noqa: E402
from lgreco.launch_environment import Launch, read_launch  # noqa: E402
from lgreco.plan import Plan  # noqa: E402
from lgreco.state import State  # noqa: E402

__all__ = [
    "Choice",
    "Config",
    "Dense",
    "Launch",
    "LowRank",
    "Plan",
    "Quantize",
    "RandomK",
    "State",
    "TopK",
    "advise",
    "attach",
    "hook",
    "init_process_group",
    "parse",
    "read_launch",
]
