"""What drafts by lookup bring: written answers replayed, and the embedded pair behind real services."""
