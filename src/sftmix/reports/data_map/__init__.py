"""The data map: one HTML file that shows every scored example of a run, opens from disk and sends no request."""
