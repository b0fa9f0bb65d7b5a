"""The `specedge` command line, which composes both processes."""
