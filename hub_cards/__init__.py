"""Cards of published models, and the small model that ships with the project."""
