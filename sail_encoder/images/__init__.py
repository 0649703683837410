"""Images: where they come from, decoding, resizing, patches and geometry."""
