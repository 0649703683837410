"""Models, a package per family."""
