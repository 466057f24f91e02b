"""What holds for every test."""

from __future__ import annotations

import signal

from hypothesis import settings

# A shell that starts the tests in the background lets them ignore SIGINT, and what is ignored stays
# ignored in every child: then no Ctrl-C could be tested. With a handler here, children begin anew.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure of a property.
settings.register_profile("edgebench", deadline=None)
settings.load_profile("edgebench")
