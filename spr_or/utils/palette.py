"""The colours of all pictures: Okabe and Ito's, which colour-blind readers tell apart."""

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
GREY = "#777777"
LIGHT_GREY = "#CCCCCC"  # still seen when a dark page inverts it
BLACK = "#000000"
