"""Colors of figures and pages: those of Okabe and Ito, which color-blind readers can tell apart."""

CONFIDENT = "#0072B2"  # blue
UNCONFIDENT = "#D55E00"  # vermilion
OTHER = "#7F7F7F"  # gray: reference lines, controls
GROUPS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, LINE, PAPER = "#1D2024", "#E3E3DF", "#FFFFFF"  # Text, grid and ground of figures in a page

# The same colors on a dark ground
ON_DARK = {
    "#0072B2": "#3D9BE9",
    "#D55E00": "#F0813A",
    "#009E73": "#2BC49A",
    "#CC79A7": "#DD8FBB",
    "#E69F00": "#F0B429",
    "#56B4E9": "#8FD0F7",
    "#000000": "#F4F4F4",
    OTHER: "#9A9FA6",
    INK: "#E3E6EA",
    LINE: "#343941",
    PAPER: "#1B1E23",
}
