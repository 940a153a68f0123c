"""Reports: files, derived figures, Markdown and HTML."""
