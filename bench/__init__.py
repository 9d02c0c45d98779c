"""Model files, runtimes, machines and time. Knows nothing of INT8, labels or accuracy."""

from bench.telemetry import switch_off

switch_off()  # Here, because it has to come before any import of a runtime.
