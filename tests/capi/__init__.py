"""The C library as programs use it."""
