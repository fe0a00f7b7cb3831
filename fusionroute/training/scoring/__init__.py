"""What each expert says of the data: two numbers per answer token, on disk."""
