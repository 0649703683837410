"""The machinery behind `sail extract`: read ahead, encode, write behind, stop cleanly, use several devices."""
