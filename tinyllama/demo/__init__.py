"""A small story model that the project trains and ships itself, since no model hub can be reached."""
