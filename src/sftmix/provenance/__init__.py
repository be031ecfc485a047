"""The origin of a run: metadata, git state, records, repetition."""
