"""The learned world and the true worlds as Gymnasium environments."""
