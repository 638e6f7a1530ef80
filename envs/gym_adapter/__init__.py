"""Any registered Gymnasium environment as a real environment of this project."""
