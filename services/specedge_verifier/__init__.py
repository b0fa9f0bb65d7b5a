"""The verification service: runs the target model and decides every token."""
