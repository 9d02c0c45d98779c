"""Nothing phones home: the runtimes' own telemetry is off before any of them is imported."""

import os
import sys


def switch_off() -> None:
    """Turn off the telemetry of onnxruntime, openvino and nncf for this process and its children.

    onnxruntime's wheels (1.29 and newer, on Linux too) upload events from their import on, and keep
    a device number and a database under the user's cache folder; this variable, set before the
    import, prevents all of that (its Privacy.md). openvino uploads an event when it is imported,
    and nncf when it is used, unless the package openvino_telemetry is missing; `None` in
    `sys.modules` makes it count as missing.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    early = sys.modules.get("onnxruntime")
    if early is not None:
        # Too late for the variable; this stops what is not sent yet.
        early.disable_telemetry_events()
