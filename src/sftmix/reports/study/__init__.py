"""The report of a study: claims that were written down before the runs, and the verdict on each."""
