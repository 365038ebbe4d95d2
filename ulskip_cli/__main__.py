"""`python -m ulskip_cli`."""

from ulskip_cli.cli.app import main

main()
