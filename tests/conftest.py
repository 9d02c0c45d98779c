"""Imported before every test module: switches the runtimes' telemetry off in time."""

import bench  # noqa: F401 - for its effect
