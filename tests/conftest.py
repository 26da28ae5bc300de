"""What every test may count on."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background, which many a runner is. The commands under test would inherit it, and be deaf to the
    # Ctrl-C that they are tested with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
