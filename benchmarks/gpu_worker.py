"""The process in which `gpu_session` measures: it takes parts and says what it finds, a line of JSON at a time.

python gpu_session.py --as gpu_worker '{"parts": ["attacks"], ...}'
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import gpu_checks
import gpu_speed
from gpu_page import FAILED
from gpu_speed import Bench
from toughen.devices import best

PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "attacks": gpu_checks.attacks,
    "methods": gpu_checks.methods,
    "verdicts": gpu_checks.verdicts,
    "resumed": gpu_checks.resumed,
    "waits": gpu_checks.waits,
    "compiled": gpu_checks.compiled,
    "ceilings": gpu_speed.ceilings,
    "steps": gpu_speed.steps,
    "evaluation": gpu_speed.evaluation,
    "speedrun": gpu_speed.speedrun,
    "profile": gpu_speed.profiled,
    "more_steps": gpu_speed.more_steps,
    "peers": gpu_speed.peers,
}


def known(rows: list[dict[str, Any]], part: str, since: str) -> frozenset[str] | None:
    """The names of a part's rows that need not be measured again; None where it has ended without a fault."""
    mine = [row for row in rows if row["part"] == part]
    if any(row["name"] == "ended" and not row["failed"] for row in mine):
        return None
    # What failed, or lacked something, is tried again, but not twice in a session.
    return frozenset(row["name"] for row in mine if not FAILED & row.keys() or row["date"] >= since)


def main() -> None:
    """Take the parts that are asked for."""
    asked = json.loads(sys.argv[1])
    # Whatever else is printed goes to the log.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: str, **said: Any) -> None:
        print(json.dumps({"event": event, **said}), file=out, flush=True)

    device = best()
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    about = {"device": kind, "torch": torch.__version__}
    say("hello", **about)
    lines = Path(asked["rows"]).read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if about.items() <= row.items()]
    for part in asked["parts"]:
        since = asked["since"]
        mine = [row for row in rows if part not in asked["anew"] or row["date"] >= since]
        done = known(mine, part, since)
        if done is None:
            continue
        started, failed = time.monotonic(), 0
        say("begun", part=part)
        for row in PARTS[part](Bench(device, asked["toy"], Path(asked["work"]), done)):
            failed += bool(FAILED & row.keys())
            say("row", part=part, **row)
        say("ended", part=part, name="ended", failed=failed, seconds=time.monotonic() - started)
    say("bye")


if __name__ == "__main__":
    main()
