"""Model execution: loading, paged KV storage, and the packed forward both processes run."""
