"""Scripts of the documentation: generated pages, pictures, and checks of pages and of their examples."""
