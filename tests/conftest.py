"""Settings of every test: no test waits for a random seed that nobody can repeat."""

from __future__ import annotations

import signal

from hypothesis import settings

# Whoever starts the tests may ignore these (nohup does, and a shell's background jobs), and children inherit it; tests
# that end a process by a signal need them to count.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# Derandomised: a run in CI finds what a run elsewhere finds. No deadline: a slow machine is no failure.
settings.register_profile("lgreco", derandomize=True, deadline=None)
settings.load_profile("lgreco")
