"""Row adapters of published data sets, one family a file; formats.py lists them."""
