"""Networks as plain modules, named in recipes by their import path."""
