"""The models: codec (frame <-> tokens), video (the token-stream world action model), and the blocks they share."""
