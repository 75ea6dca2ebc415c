"""Routes that belong to no single capability."""
