"""The regression gate: is the candidate slower than the baseline by more than is allowed?

Rooms without I/O: ``sequential`` (the test), ``family`` (many hypotheses), ``counts`` (accuracy and
size), ``trend`` (drift and change points in a history), ``blocks`` (recordings -> log-ratios),
``environment`` (may these blocks be used?), ``lengths`` (how long should the next be?), ``replay``
(what the gate would do on given noise).
Rooms with I/O: ``pairs`` (what is compared with what), ``canary``, ``check``, ``history``,
``selftest``. ``outcome`` is what they return; ``junit``, ``markdown`` and ``show`` print it.
docs/gate.md has the method and what it assumes.
"""
