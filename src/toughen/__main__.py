"""`python -m toughen`, as torchrun wants it."""

import os
import sys

from toughen.cli.app import main

try:
    main()
except SystemExit as end:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and isinstance(end.code, int | None):
        # At the interpreter's end threads that torch leaves behind abort one process of 25, which is work well done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
    raise
