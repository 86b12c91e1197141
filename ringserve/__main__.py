"""`python -m ringserve`: the same as the `ringserve` command."""

from ringserve.cli import main

main()
