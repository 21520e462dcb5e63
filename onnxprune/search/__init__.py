"""One file for each way to meet a request."""
