"""Imported before every test module: switches the runtimes' telemetry off in time."""

from hypothesis import settings

import bench  # noqa: F401 - for its effect

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
