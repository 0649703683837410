"""Input and output that no part of the toolkit is about: files, locks, devices, the Hub, weights, threads, errors."""
