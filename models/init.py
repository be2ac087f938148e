"""The initial weights all convolutional networks here share."""

from torch import nn


def he_normal_(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2/fan_out), its bias zero, in place.

    He et al., *Delving Deep into Rectifiers* (ICCV 2015). BatchNorm and linear layers keep
    torch's own start (γ = 1, β = 0; uniform).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
