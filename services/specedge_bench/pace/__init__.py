"""Services whose forwards take as long as a GPU's, on a machine without one."""
