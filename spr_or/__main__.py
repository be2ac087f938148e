"""`python -m spr_or`: the same as `spr-or`."""

from spr_or.cli import app

if __name__ == "__main__":
    app(prog_name="spr-or")
