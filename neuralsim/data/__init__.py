"""Episodes, stores, windows, images and video files."""
