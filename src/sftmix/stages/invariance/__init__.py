"""The invariance check (mode=certify): one optimizer step in every variant that must give the same result."""
