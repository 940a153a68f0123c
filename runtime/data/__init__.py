"""Files of texts in common formats -> records, one at a time. `records.open_table` is the entry point."""
