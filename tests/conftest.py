"""Settings of every test: no test waits for a random seed that nobody can repeat."""

from __future__ import annotations

from hypothesis import settings

# Derandomised: a run in CI finds what a run elsewhere finds. No deadline: a slow machine is no failure.
settings.register_profile("lgreco", derandomize=True, deadline=None)
settings.load_profile("lgreco")
