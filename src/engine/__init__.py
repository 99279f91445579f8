"""Tensors, fast. Knows no query ids, no CSV files and no retrieval: usable as a library of its own."""

import sys

# OpenVINO and nncf report their use to a server wherever they can import this package, unasked.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
