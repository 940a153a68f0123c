"""What is measured: engines of the bundle, and competitors."""
