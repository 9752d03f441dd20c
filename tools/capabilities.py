"""Run the tests as narrower processors than this one compute: `make test-capabilities`, nightly.

The last bit of a sum or a power depends on how many numbers a processor takes at once, that of a convolution on the
kernels that oneDNN has for it. What is promised to the bit must hold on all of them, and no test may ask to the bit
what is promised up to rounding.

    python tools/capabilities.py                       # the whole suite, two processes at a time
    python tools/capabilities.py -n 0 tests/attacks    # arguments of pytest
"""

import os
import subprocess
import sys

import torch

# Widest first: a processor has those after its own, too.
WIDTHS = ["avx512", "avx2", "default"]


def environments() -> list[dict[str, str]]:
    """What to set for each kind of processor that this one can pass for."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    widths = WIDTHS[WIDTHS.index(found) :] if found in WIDTHS else ["default"]
    kernels = [{"ONEDNN_MAX_CPU_ISA": "AVX2"}] if "avx2" in widths else []
    return [{"ATEN_CPU_CAPABILITY": width} for width in widths] + kernels


def main() -> None:
    """Run pytest in each environment and exit with 1 if it has failed in any."""
    arguments, failed = sys.argv[1:] or ["-n", "2"], []
    for environment in environments():
        name = " ".join(f"{key}={value}" for key, value in environment.items())
        print(f"--- {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", "pytest", *arguments], env=os.environ | environment)
        if done.returncode:
            failed.append(name)
    sys.exit(f"failed under {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
