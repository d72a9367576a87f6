"""What the paper's tables and figures are computed from: systems measured on the same units, and what to make of it."""
