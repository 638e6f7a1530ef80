"""Interactive play and recording."""
