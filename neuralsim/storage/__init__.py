"""Files of a world folder: manifest, weights, hub."""
