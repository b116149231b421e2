"""`python -m latentwire`: the same as `latentwire`."""

from latentwire.cli.main import run

run()
