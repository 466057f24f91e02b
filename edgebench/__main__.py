"""``python -m edgebench``."""

from edgebench.cli.main import main

main()
