"""Colors of figures and pages: those of Okabe and Ito, which color-blind readers can tell apart."""

CONFIDENT = "#0072B2"  # blue
UNCONFIDENT = "#D55E00"  # vermilion
OTHER = "#7F7F7F"  # gray: reference lines, controls
GROUPS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
