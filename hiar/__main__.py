"""`python -m hiar` is the command `hiar`."""

from hiar.cli import main

main()
