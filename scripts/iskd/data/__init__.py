"""Text, tokens and task rows: made here, read from files, or fetched from the hub."""
