"""Files of texts as people have them -> records, one at a time. `records.open_table` is the way in."""
