"""The embedded checkpoint `sail-tiny`; this folder holds its files."""
