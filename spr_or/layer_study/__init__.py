"""The layers of a trained network as exact problems: which input channels reproduce the output best."""
