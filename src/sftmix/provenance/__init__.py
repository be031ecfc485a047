"""Where a run comes from: metadata, source, records, repetition."""
