"""Tables of the paper, comparisons and leaderboards from the runs of a sweep."""
