"""Settings shared by all tests: few threads, fixed seeds, reproducible hypothesis runs."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# The tensors of most tests are tiny, and `make test` runs one process a core.
torch.set_num_threads(1)

# The same examples on every machine and no timing: a slow machine must not fail a test.
# `pytest --hypothesis-profile=default` draws new examples instead.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
