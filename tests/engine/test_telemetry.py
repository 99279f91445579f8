import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_openvino_finds_nobody_to_report_to() -> None:
    code = """
import src.engine
import openvino
try:
    import openvino_telemetry
except ImportError:
    print("no telemetry")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "no telemetry\n"
