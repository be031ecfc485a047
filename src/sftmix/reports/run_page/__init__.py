"""The page of a run: one HTML file without scripts that opens from disk and sends no request."""
