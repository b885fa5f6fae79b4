"""Images, labels and groups."""
