"""The regulariser on any network, the optimiser with its proximal step, masks and their physical removal."""
