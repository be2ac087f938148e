"""The tables of the paper, with what our runs gave beside what was published."""
