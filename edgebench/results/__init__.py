"""The store of recordings, and the tables derived from them.

``store``   recordings on disk: written once, never changed, verified when read
``ulid``    their names
``columns`` every table column: type, unit, meaning
``tables``  recordings -> latency, energy and power tables, byte for byte the same each time
``show``    the latency table on a terminal
``api``     ``edgebench.results()``

Nothing is imported here: pandas and pyarrow load when a function needs them.
"""
