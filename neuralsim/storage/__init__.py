"""Files of a world folder: manifest, weights, quantization; and where such folders lie."""
