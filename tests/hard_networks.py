"""Networks on which pruning tools fail, each the smallest of its kind; what compaction must refuse."""

import hard_attention
import hard_convolutions
import hard_modules
import hard_norms
import hard_streams
from network_cases import Case, collector, features, image
from torch import Tensor, nn, randn_like

CASES: list[Case] = [
    *hard_convolutions.CASES,
    *hard_streams.CASES,
    *hard_norms.CASES,
    *hard_attention.CASES,
    *hard_modules.CASES,
]

REFUSED: list[Case] = []
refused = collector(REFUSED)


@refused("branch that depends on the data", features)
class DataBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x.relu() if x.sum() > 0 else x.tanh())


@refused("loop that depends on the data", features)
class DataLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().max().item())):
            x = self.a(x)
        return self.head(x)


@refused("noise in evaluation", image)
class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x + 0.1 * randn_like(x))


@refused("dropout that stays on in evaluation", features)
class AlwaysDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.a(x)))
