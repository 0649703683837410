"""Pictures of features: components, similarity and matches as arrays, and sheets that show them."""
