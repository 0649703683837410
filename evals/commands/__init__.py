"""The verbs that measure, one file each."""
