"""Files of texts answered, resumably."""
