"""One run: from a handle and a request to pictures and a report."""
