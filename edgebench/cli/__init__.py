"""The command line: one module a command, each a thin layer over ``edgebench.api``.

Only Typer is imported at start; a command imports its work when it is called, so that ``--help``
is quick and a machine that only measures needs neither torch nor transformers.
"""
