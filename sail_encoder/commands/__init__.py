"""Commands of `sail`, a file per verb."""
