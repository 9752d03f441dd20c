"""The alarms that a run's training raised: catastrophic overfitting, as its monitor logged it. No torch.

alarms = read_alarms(Path("runs/mine"))      # [{"code": "AT101", "step": 612, "alarm": "AT101 Catastrophic ...", ...}]
overfitting_text(alarms)                           # "overfitted at step 612 (AT101)"
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toughen.report.blocks import JsonObject
from toughen.storage import files

CODE = "AT101"


def read_alarms(path: Path) -> list[dict[str, Any]]:
    """Those of a run folder: of its summary, or of the log as far as a run that has not ended has come.

    Raises:
        ValueError: one of the two files is damaged.
    """
    if (path / "summary.json").is_file():
        # None where training was not watched.
        return [{"code": CODE, **found} for found in files.read_json(path / "summary.json").get("alarms") or ()]
    log = path / "metrics.jsonl"
    if not log.is_file():
        return []
    data = log.read_bytes()
    # Whole lines: another may be half written.
    whole = data[: data.rfind(b"\n") + 1].splitlines()
    return collect_alarms(files.decode(line, log) for line in whole if b'"overfitting"' in line)


def collect_alarms(metrics: Iterable[JsonObject]) -> list[dict[str, Any]]:
    """Those in the lines of a run's log, each as a run's summary has it."""
    checks = [(line["step"], line["overfitting"]) for line in metrics if "overfitting" in line]
    return [{"code": CODE, "step": step, **found} for step, found in checks if "alarm" in found]


def overfitting_text(alarms: Sequence[JsonObject]) -> str:
    """All of them in a few words; empty for none."""
    if not alarms:
        return ""
    steps = [f"{alarm['step']:,}" for alarm in alarms]
    return f"overfitted at step{'s' if len(steps) > 1 else ''} {' and '.join(steps)} ({CODE})"
