"""`etascope` as the shell starts it, which tells the time of its first step and stops there.

Run: `python benchmarks/peers/shell_startup.py sweep mnist-cnn --steps 1000 ...`; prints the time
by the clock. It ends the sweep the way a user does, with an interrupt.
"""

import os
import signal
import time
from typing import Any

from etascope.cli import main
from etascope.reporting.progress import TerminalProgress


def tell(self: Any, *step: Any) -> None:
    """Stand in for the display of a step."""
    if not hasattr(self, "told"):
        self.told = True
        os.write(1, f"\nfirst step {time.time()}\n".encode())
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    TerminalProgress.tick = tell
    main()
