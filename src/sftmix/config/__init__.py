"""Names, types, ranges and rules of every configuration key."""
