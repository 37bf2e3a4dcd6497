"""What was measured: figures/<device>/<name>.json, with device, driver, versions, date, commit and command."""
import json
import re
from pathlib import Path

from helpers import ROOT


def folder(device_name: str) -> Path:
    """figures/<device>/: "NVIDIA H200" becomes figures/h200."""
    return ROOT / "figures" / re.sub(r"\W+", "_", device_name.replace("NVIDIA", "").strip().lower())


def load(name: str, device_name: str = "NVIDIA H200") -> dict:
    """The record of one suite: where and when it was measured, the card's ceilings, and `rows`."""
    return json.loads((folder(device_name) / f"{name}.json").read_text())


def save(name: str, record: dict):
    """Write figures/<device>/<name>.json, and say so."""
    path = folder(record["device"]) / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(record['rows'])} rows in {path.relative_to(ROOT)}", flush=True)
