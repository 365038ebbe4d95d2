"""`python -m ulskip_cli`."""

from ulskip_cli.cli import main

main()
