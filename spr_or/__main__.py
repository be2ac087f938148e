"""`python -m spr_or`: the same as `spr-or`."""

from spr_or.cli import app

app(prog_name="spr-or")
