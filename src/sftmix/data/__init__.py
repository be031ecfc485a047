"""From sources to the steps of an epoch: sources -> examples -> token ids -> steps -> micro-batches."""
